"""The plan of a cluster: a ring all-reduce by hand, limits, and when it says that none pays."""

import dataclasses
import math
import re
from pathlib import Path

import pytest

from def_jax.tools import plan as plan_lib
from def_jax.tools.plan import Plan, parse_bandwidth
from def_jax.tools.plan.__main__ import main
from def_jax.tools.plan.devices import DEVICES

ROOT = Path(__file__).resolve().parents[3]

SLOW = Plan(params=25.6e6, step_time=0.12, bandwidth=10e9, workers=64, latency=0.0)
FAST = dataclasses.replace(SLOW, bandwidth=800e9, overlap=0.9)


def test_a_ring_all_reduce_by_hand():
    """Each of 4 workers sends 6 quarters of 1,000 float32 at 32 kbit/s, in 6 messages of 10 ms."""
    plan = Plan(params=1000, step_time=1e-9, bandwidth=32e3, workers=4, latency=0.01)
    assert plan.all_reduce(1000) == pytest.approx(6 * (250 * 32 / 32e3 + 0.01))
    assert plan.dense_step() == pytest.approx(plan.all_reduce(1000))


def test_a_step_has_its_share_of_evaluations_and_of_the_final_output():
    plan = dataclasses.replace(SLOW, num_steps=1000, evaluate_every=100)
    without = SLOW.step_time + SLOW.all_reduce(SLOW.params / 64)
    assert plan.step(64) == pytest.approx(without + 11 / 1000 * SLOW.all_reduce(SLOW.params))
    assert dataclasses.replace(plan, overhead=0.5).step(64) == pytest.approx(plan.step(64) + 0.5)


def test_limits():
    speed_ups = [SLOW.speed_up(ratio) for ratio in (1, 4, 16, 64, 256, 1024)]
    assert speed_ups == sorted(speed_ups) and speed_ups[0] < 1 < speed_ups[-1]
    assert speed_ups[-1] < SLOW.dense_step() / SLOW.step_time
    assert SLOW.speed_up(64) > dataclasses.replace(SLOW, overlap=0.5).speed_up(64)
    assert dataclasses.replace(SLOW, element_bytes=2).all_reduce(1e6) == SLOW.all_reduce(1e6) / 2
    alone = dataclasses.replace(SLOW, workers=1)
    in_flight = dataclasses.replace(SLOW, in_flight=True)
    longer = [max(SLOW.step_time, SLOW.all_reduce(SLOW.params / ratio)) for ratio in (64, 1)]
    assert [in_flight.step(64), in_flight.step(1)] == pytest.approx(longer, rel=1e-4)
    assert alone.dense_step() == alone.step(64) == alone.step_time and alone.break_even() == math.inf


@pytest.mark.parametrize(
    'changes',
    [{}, {'overhead': 0.05}, {'overlap': 0.8}, {'latency': 1e-4}, {'in_flight': True, 'overhead': 0.15}],
    ids=str,
)
def test_at_the_break_even_ratio_both_take_the_same_time(changes):
    plan = dataclasses.replace(SLOW, **changes)
    assert plan.step(plan.break_even()) == pytest.approx(plan.dense_step())
    assert plan.break_even() > 1


def test_it_says_when_compression_does_not_pay():
    assert 'not worth it' in FAST.verdict() and 'times as fast' in SLOW.verdict()
    assert 'not worth it' not in SLOW.verdict()
    slower = dataclasses.replace(FAST, overhead=0.01)
    assert slower.break_even() == math.inf and 'not worth it' in slower.verdict()


@pytest.mark.parametrize(
    ('text', 'bits'),
    [
        *(('10gbit', 10e9), ('800 mbit', 8e8), ('1e9', 1e9), ('2.5Gbps', 2.5e9), ('56k', 56e3)),
        *(('1 Gb/s', 1e9), ('10GBps', 80e9), ('10 GB/s', 80e9)),
    ],
)
def test_bandwidths(text, bits):
    assert parse_bandwidth(text) == bits


@pytest.mark.parametrize('text', ['', 'fast', '10 GB', 'gbit', '-1gbit', '1.2.3', None])
def test_no_bandwidth(text):
    with pytest.raises(ValueError, match=r"bandwidth=.* must be in bits per second, such as '10gbit'"):
        parse_bandwidth(text)


@pytest.mark.parametrize(
    ('field', 'value'),
    [(f.name, bad) for f in dataclasses.fields(Plan) for bad in (-1, math.nan, math.inf, 1e300, '64', None)]
    + [('overlap', 2), ('step_time', 0)],
)
def test_impossible_values(field, value):
    with pytest.raises(ValueError, match=rf'{field}=.* must be (a number in|True or False)'):
        dataclasses.replace(SLOW, **{field: value})


FLAGS = ['--params=25.6e6', '--step-time=0.12', '--workers=64', '--bandwidth=10gbit']


def test_the_command_line_and_both_spellings_of_a_flag(tmp_path, capsys):
    picture = tmp_path / 'plan.png'
    assert main([*FLAGS, '--num-steps=10', '--evaluate_every=5', f'--output={picture}']) == 0
    plan = dataclasses.replace(SLOW, latency=50e-6, num_steps=10, evaluate_every=5)
    assert plan_lib.table(plan) in capsys.readouterr().out
    assert picture.stat().st_size > 0


DEVICE = ['--params=1e6', '--workers=4', '--device=h100']


@pytest.mark.parametrize(
    ('flags', 'line'),
    [
        ([*FLAGS, '--bandwidth=fast'], "plan: bandwidth='fast' must be in bits per second"),
        ([*FLAGS, '--step-time=0'], 'plan: step_time=0.0 must be a number in [1e-09, '),
        ([*FLAGS, '--workers=4.5'], "plan: argument --workers: invalid int value: '4.5'"),
        ([*FLAGS, '--worker=4'], 'plan: unrecognized arguments: --worker=4'),
        ([*FLAGS, '--output=.'], "plan: output='.' is a folder"),
        ([*FLAGS, '--output=no/such/folder/x.png'], 'plan: [Errno 2] No such file or directory'),
        (FLAGS[:2], 'plan: the following arguments are required: --bandwidth, --workers'),
        (
            [*DEVICE, '--device=h101', '--flops=1e12'],
            "plan: device='h101' is unknown; it must be one of h100",
        ),
        (DEVICE, 'plan: the following arguments are required: --step-time'),
        ([*DEVICE, '--flops=-1'], 'plan: flops=-1.0 must be a number in [0, '),
        ([*DEVICE, '--flops=1', '--step-time=1'], 'plan: --step-time and --flops exclude each other'),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(tmp_path, monkeypatch, capsys, flags, line):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(flags)
    output = capsys.readouterr()
    assert end.value.code == 2 and output.err.startswith(line), output.err
    assert output.err.count('\n') == 1 and not output.out and not list(tmp_path.iterdir())


def test_a_device_bounds_the_step_and_has_a_link(capsys):
    """989.4 TFLOP/s and NVLink's 3,600 Gbit/s; a small model is bound by its eight passes over memory."""
    assert main(['--device=h100', '--flops=9.894e12', '--params=85e6', '--workers=8']) == 0
    plan = Plan(params=85e6, step_time=0.01, bandwidth=3600e9, workers=8)
    output = capsys.readouterr().out
    assert plan_lib.table(plan) in output and 'a bound, not a prediction' in output
    assert DEVICES['v5e'].step_time(1e9, 1e9) == pytest.approx(8 * 4e9 / 819e9)


@pytest.mark.parametrize(
    ('title', 'flops'), [('An MLP', 6 * 12_590_080 * 16), ('VGG-16', 8 * 3 * 2 * 313.2e6)]
)
def test_the_measured_cluster_stays_above_its_bounds(title, flops):
    """Four workers share two cores, so each has half of one; the gradients alone and steps at 1 Gbit/s."""
    page = (
        (ROOT / 'results/benchmarks/cluster.md').read_text().partition(f'## {title}')[2].partition('## ')[0]
    )
    params = int(re.search(r'([\d,]+) parameters', page)[1].replace(',', ''))
    bound = DEVICES['epyc'].step_time(params, 2 * flops)
    plan = Plan(params=params, step_time=bound, bandwidth=1e9, workers=4, latency=0.0)
    for row, least in (('JAX, dense: pmean', plan.dense_step()), ('DEF, ratio 64 ', plan.step(64))):
        measured, computed = re.search(rf'{row}.*?\| (\d+) \(.*?\| (\d+) \|', page).groups()
        assert float(measured) > 1e3 * least and float(computed) > 1e3 * bound
