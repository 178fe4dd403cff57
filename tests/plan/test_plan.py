"""The plan of a cluster: a ring all-reduce by hand, limits, and when it says that none pays."""

import dataclasses
import math
import subprocess
import sys

import pytest

from def_jax import plan as plan_lib
from def_jax.plan import Plan, parse_bandwidth

SLOW = Plan(params=25.6e6, step_time=0.12, bandwidth=10e9, workers=64, latency=0.0)
FAST = dataclasses.replace(SLOW, bandwidth=800e9, overlap=0.9)


def test_a_ring_all_reduce_by_hand():
    """Each of 4 workers sends 6 quarters of 1,000 float32 at 32 kbit/s, in 6 messages of 10 ms."""
    plan = Plan(params=1000, step_time=0, bandwidth=32e3, workers=4, latency=0.01)
    assert plan.all_reduce(1000) == pytest.approx(6 * (250 * 32 / 32e3 + 0.01))
    assert plan.dense_step() == plan.all_reduce(1000)


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
    assert alone.dense_step() == alone.step(64) == alone.step_time and alone.break_even() == math.inf


@pytest.mark.parametrize('changes', [{}, {'overhead': 0.05}, {'overlap': 0.8}, {'latency': 1e-4}], ids=str)
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
    ('text', 'bits'), [('10gbit', 10e9), ('800 mbit', 8e8), ('1e9', 1e9), ('2.5Gbps', 2.5e9), ('56k', 56e3)]
)
def test_bandwidths(text, bits):
    assert parse_bandwidth(text) == bits


@pytest.mark.parametrize('text', ['', 'fast', '10 GB', 'gbit', '-1gbit', '1.2.3', None])
def test_no_bandwidth(text):
    with pytest.raises(ValueError, match=r"bandwidth=.* must be in bits per second, such as '10gbit'"):
        parse_bandwidth(text)


@pytest.mark.parametrize(
    ('field', 'value'),
    [(f.name, bad) for f in dataclasses.fields(Plan) for bad in (-1, math.nan, '64', None)]
    + [('overlap', 2)],
)
def test_impossible_values(field, value):
    with pytest.raises(ValueError, match=rf'{field}=.* must be a number in'):
        dataclasses.replace(SLOW, **{field: value})


def test_the_command_line(tmp_path):
    command = [sys.executable, '-m', 'def_jax.plan', '--params=25.6e6', '--step-time=0.12', '--workers=64']
    good = subprocess.run(
        [*command, '--bandwidth=10gbit', f'--output={tmp_path / "plan.png"}'], capture_output=True, text=True
    )
    assert good.returncode == 0 and plan_lib.table(dataclasses.replace(SLOW, latency=50e-6)) in good.stdout
    assert (tmp_path / 'plan.png').stat().st_size > 0
    bad = subprocess.run([*command, '--bandwidth=fast'], capture_output=True, text=True)
    assert bad.returncode == 2 and bad.stderr.startswith("plan: bandwidth='fast' must be in bits per second")
