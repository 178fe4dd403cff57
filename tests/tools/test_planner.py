"""The plan of a cluster: a ring all-reduce by hand, limits, a measured link, and what it advises."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import optax
import pytest

import def_jax
from def_jax.tools.planner import Plan, advice, comparison, measure, parse_bandwidth, parse_size
from def_jax.tools.planner.program import main

SLOW = Plan(params=25.6e6, step_time=0.12, bandwidth=10e9, workers=64, latency=0.0)
HUGE = Plan(params=1e9, step_time=1.5, bandwidth=1e9, workers=2)
FAST = dataclasses.replace(SLOW, bandwidth=800e9, overlap=0.9)
NODES = dataclasses.replace(SLOW, workers=8, gpus_per_link=8)


def test_a_ring_all_reduce_by_hand():
    """Each of 4 workers sends 6 quarters of 1,000 float32 at 32 kbit/s, in 6 messages of 10 ms."""
    plan = Plan(params=1000, step_time=1e-9, bandwidth=32e3, workers=4, latency=0.01)
    assert plan.all_reduce(1000) == pytest.approx(6 * (250 * 32 / 32e3 + 0.01))
    assert plan.dense_step() == pytest.approx(plan.all_reduce(1000, plan.dense_bytes))


def test_a_step_has_its_share_of_evaluations_and_of_the_final_output():
    plan = dataclasses.replace(SLOW, num_steps=1000, evaluate_every=100)
    without = SLOW.step_time + SLOW.all_reduce(SLOW.params / 64)
    assert plan.step(64) == pytest.approx(without + 11 / 1000 * SLOW.all_reduce(SLOW.params))
    assert dataclasses.replace(plan, overhead=0.5).step(64) == pytest.approx(plan.step(64) + 0.5)


def seconds_of(plan):
    return [method.seconds for method in comparison.compare(plan, local_steps=50)]


def test_the_methods_by_hand():
    """Without latency a worker is told apart by its bytes alone; PowerSGD pays latency twice."""
    dense, *def_q, diloco, streaming, powersgd = seconds_of(SLOW)
    assert dense == SLOW.dense_step() and def_q == [SLOW.step(ratio) for ratio in (16, 64, 256)]
    assert diloco == pytest.approx(SLOW.step_time + SLOW.all_reduce(SLOW.params) / 50)
    assert streaming == SLOW.step_time  # hidden
    thin = dataclasses.replace(SLOW, bandwidth=1e6)
    assert seconds_of(thin)[1] == 64 * 0.12 and seconds_of(thin)[6] == pytest.approx(
        (4 * 0.12 + thin.all_reduce(thin.params / 10) / 8) / 5
    )
    assert powersgd == pytest.approx(SLOW.step_time + SLOW.all_reduce(SLOW.params / 64))
    late = dataclasses.replace(SLOW, latency=1e-3)
    assert seconds_of(late)[6] - powersgd == pytest.approx(2 * 2 * 63 * 1e-3)
    wide = comparison.compare(dataclasses.replace(SLOW, dense_bytes=4))  # with dense bfloat16 beside it
    sent = [method.sent for method in wide]
    assert sent == pytest.approx([2 * 63 / 64 * 4 * 25.6e6 / n for n in (1, 2, 16, 64, 256, 50, 400, 64)])
    assert wide[1:] == comparison.compare(SLOW)


def test_links_that_gpus_share_by_hand():
    """Two links of eight GPUs each, 2 M parameters: what leaves a link."""
    plan = Plan(2**21, 0.1, 1e9, workers=2, gpus_per_link=8, latency=1e-3, dense_bytes=4)
    found = comparison.compare(plan)
    whole, message = 4 * 2**21, 4 * 2**21 / 64
    ring = 2 * 15 / 16
    by_gpu = 8 * 8 / 16 * message + 15 / 16 * message  # each to eight others directly, and one ring
    sent = [whole, ring * whole, whole / 2, ring * whole / 2, 0, *(whole / n for n in (16, 64, 256)), by_gpu]
    assert [each.sent for each in found] == pytest.approx([*sent, whole / 50, whole / 400, ring * message])
    dense, one_ring, _, _, alone, _, inside, _, gpu, *_ = (each.seconds for each in found)
    assert alone == 2 * 0.1 and one_ring == pytest.approx(0.1 + 8 * ring * whole / 1e9 + 2 * 15 * 1e-3)
    assert dense == pytest.approx(0.1 + 8 * whole / 1e9 + 2 * 1e-3)
    outputs = [(8 * 2 * (1 - 1 / k) * whole / 1e9 + 2 * (k - 1) * 1e-3) / 100_000 for k in (2, 16)]
    assert inside == pytest.approx(0.1 + 8 * message / 1e9 + 2 * 1e-3 + outputs[0])
    assert gpu == pytest.approx(0.1 + 8 * by_gpu / 1e9 + 2 * 15 * 1e-3 + outputs[1])


def test_fsdp_by_hand():
    """FSDP over all gathers in bfloat16 twice and scatters once; inside a node, a device holds an eighth."""
    plan = dataclasses.replace(NODES, workers=2, params=2**21, fsdp=True)
    inside, over_all, *def_q, diloco, streaming = comparison.compare(plan)
    assert over_all.sent == pytest.approx(3 * 15 / 16 * 2 * 2**21)
    late = dataclasses.replace(plan, latency=1e-3)
    assert comparison.compare(late)[1].seconds == pytest.approx(over_all.seconds + 3 * 15 * 1e-3)
    assert over_all.memory == 16 * 2**21 / 16 and inside.memory == 16 * 2**21 / 8
    assert {each.memory for each in def_q} == {24 * 2**21 / 8}
    assert diloco.memory == streaming.memory == 28 * 2**21 / 8
    assert [each.sent for each in def_q] == pytest.approx([4 * 2**21 / n for n in (16, 64, 256)])
    assert comparison.compare(dataclasses.replace(plan, fsdp=False))[0].memory == 16 * 2**21


@pytest.mark.parametrize(
    ('plan', 'words'),
    [
        (FAST, r'Dense is best: communication is \d % of its step[^$]*Change nothing'),
        (dataclasses.replace(FAST, overhead=0.01), 'Dense is best'),
        (dataclasses.replace(SLOW, workers=1), 'One worker sends nothing to others'),
        (
            dataclasses.replace(SLOW, params=9e6, step_time=0.04, bandwidth=4e9),
            r'compression 64: [^$]*def_sgd\(rate, 64, [^$]*def_adamw\(rate, 64',
        ),
        (
            dataclasses.replace(SLOW, dense_bytes=4, bandwidth=150e9),
            'Dense is best: [^$]*no method that is recommended at this size[^$]*Train with dense, bfloat16',
        ),
        (  # which computes all in the time that five wait for their messages
            dataclasses.replace(HUGE, workers=5, bandwidth=1e6),
            'One worker alone is best: [^$]*Train with one worker alone, the same batch',
        ),
        (
            dataclasses.replace(SLOW, bandwidth=1e8, in_flight=True),
            'Start with DEF-Q, compression 256[^$]*overlap=True',
        ),
        (dataclasses.replace(SLOW, latency=0.05), 'Start with DiLoCo, H = 50[^$]*every=50,'),
        (
            dataclasses.replace(SLOW, workers=8, gpus_per_link=8),
            r'compression 16, inside=8: [^$]*, hierarchical[^$]*def_sgd\(rate, 16, .workers., inside=8\)[^$]*'
            '8 neighbours are one worker',
        ),
        (
            dataclasses.replace(SLOW, workers=8, gpus_per_link=8, latency=0.3),
            'Start with DiLoCo, H = 50[^$]*inside=8[^$]*every=50,',
        ),
        (  # nearer the fastest than DiLoCo, but not in evidence
            dataclasses.replace(HUGE, params=7e9, step_time=5.2, bandwidth=3e9),
            r'Start with DiLoCo, H = 50: [^$]* times as fast as one worker alone, [^$]*Streaming DiLoCo, H = '
            r'50, 4 bits, hidden would be [^$]*, but is known to 4 B parameters alone[^$]*spmd\(optimizer'
            r'[^$]*not been trained at this size: DEF on 36.5 M parameters at most, [^$]*DEF-Q on 10.7 M[^$]*'
            r'[^$]*def_adamw\(rate, 16',
        ),
        (
            dataclasses.replace(HUGE, params=4e11, step_time=1500, gpus_per_link=8, fsdp=True),
            r'Start with DiLoCo, H = 50[^$]*The largest model [^$]*with it has 10 B parameters[^$]*'
            'not been trained at this size',
        ),
        (
            dataclasses.replace(HUGE, latency=0.03),
            'Start with[^$]*outer rate and momentum are the published ones[^$]*In MaxText, set '
            '`enable_diloco=true`',
        ),
        (
            dataclasses.replace(HUGE, params=7e9, step_time=5, bandwidth=1e11, gpus_per_link=8, workers=16),
            r'196 GB of a device are needed, more than most have: [^$]*Shard [^$]*\(`--fsdp`\)',
        ),
        (
            dataclasses.replace(NODES, params=7e9, step_time=60, fsdp=True),
            'Start with [^$]*If you train with FSDP over all GPUs now, first [^$]*between: 1.17 times',
        ),
    ],
)
def test_the_advice(plan, words):
    assert re.match(f'[^$]*{words}', advised(plan))


def advised(plan, optimizer=None):
    return advice.advise(plan, comparison.compare(plan, optimizer=optimizer), optimizer)


def test_what_is_recommended_is_worth_it_itself():
    """The smallest compression is 1.04 times as fast as dense, and DiLoCo 1.06 times."""
    plan = dataclasses.replace(SLOW, step_time=1.0, bandwidth=12.7e9, overhead=0.02)
    assert 1.03 < plan.speed_up(16) < advice.WORTH
    assert advised(plan).startswith('Start with DiLoCo, H = 50: 1.06 times')


@pytest.mark.parametrize('params', [25.6e6, 5e6])
@pytest.mark.parametrize('optimizer', [None, *comparison.OPTIMIZERS])
def test_large_transformers_are_told_to_take_16(params, optimizer):
    """Who trains with AdamW is not offered more, has 16 in the line to paste, and nobody else."""
    plan = dataclasses.replace(SLOW, params=params, step_time=0.12 * params / 25.6e6, bandwidth=4e9)
    told, large = advised(plan, optimizer), params > 1e7
    assert told.startswith('Start with DEF-Q, compression 64:') == (not large or optimizer != 'adamw')
    assert told.startswith('Start with DEF-Q, compression 16:') == (large and optimizer == 'adamw')
    assert ('Faster: DiLoCo, H = 50; Streaming' in told) == (large and optimizer == 'adamw')
    assert ('def_adamw(rate, 16,' in told) == (large and optimizer != 'sgd')
    assert ('The line for AdamW has 16' in told) == (large and optimizer is None)
    far = advised(dataclasses.replace(plan, workers=2, latency=0.02), optimizer)
    assert 'Start with DiLoCo' in far or optimizer != 'adamw' or not large
    thick = dataclasses.replace(plan, bandwidth=1e10)
    assert advised(thick, optimizer).startswith('Start with DEF-Q, compression 16:')


def test_what_does_not_fit_is_not_recommended():
    plan = dataclasses.replace(NODES, params=1e9, step_time=0.3, workers=16, fsdp=True)
    assert advised(plan).startswith('Start with Streaming DiLoCo')  # 3.5 GB a device
    told = advised(dataclasses.replace(plan, memory=3.4e9))
    assert 'FSDP inside: communication is 91 % of its step, but the methods that have trained models' in told
    assert (
        'hold more than the 3.4 GB of a device. Shard the model over more devices (`--gpus-per-link`)' in told
    )
    assert 'DiLoCo' not in told and 'To compare DEF-Q, compression 16, FSDP inside' in told
    told = advised(dataclasses.replace(plan, memory=1e9))
    assert told.startswith('Train with dense, bfloat16, FSDP over all: ') and 'DEF-Q' not in told
    told = advised(dataclasses.replace(plan, memory=1e8))
    assert told.startswith('Nothing fits: parameters, gradients and state alone take 0.125 GB of a device')


@pytest.mark.parametrize(
    'plan',
    [
        dataclasses.replace(SLOW, bandwidth=20e9),
        dataclasses.replace(NODES, params=7e9, step_time=60, fsdp=True),
    ],
)
def test_it_says_how_much_of_the_all_reduce_must_be_hidden_for_dense_to_be_best(plan):
    told = advised(plan)
    chosen, share, _, fastest, last = re.search(
        r'backward pass: (.*?) pays until (\d+) % hides(, others longer, (.*?) until (\d+) %)?; beyond', told
    ).groups()
    assert told.startswith(f'Start with {chosen}: ')
    found = {method.name: method for method in comparison.compare(plan)}
    for name, limit in ((chosen, share), (fastest or chosen, last or share)):
        for more, pays in ((0.01, False), (-0.01, True)):
            dense = dataclasses.replace(plan, overlap=int(limit) / 100 + more).dense_step()
            assert (dense >= advice.WORTH * found[name].seconds) == pays
    assert advised(dataclasses.replace(plan, overlap=int(last or share) / 100 + 0.01)).startswith('Dense is')
    assert advised(dataclasses.replace(plan, overlap=int(last or share) / 100 - 0.01)).startswith('Start')


def test_what_a_step_is_too_short_to_hide_still_changes_the_gain():
    """With nothing hidden and with all that a step has time for, DEF-Q is so many times as fast."""
    plan = dataclasses.replace(SLOW, bandwidth=1e9)
    told = advised(plan, 'sgd')
    times = [comparison.times((plan.dense_step() - hidden) / plan.step(256)) for hidden in (0, 0.12)]
    assert f'DEF-Q, compression 256: {times[0]} times' in told
    assert f'If all hides that a step has time for, it is still {times[1]} times as fast. `--d' in told


@pytest.mark.parametrize(
    ('optimizer', 'limit', 'words'), [('sgd', 5.3e6, 'with SGD'), ('adamw', 10.7e6, 'with AdamW')]
)
def test_what_def_q_was_not_trained_at_is_said(optimizer, limit, words):
    plan = dataclasses.replace(SLOW, params=limit, step_time=0.12 * limit / 25.6e6)
    assert 'not been trained' not in advised(plan, optimizer)
    told = advised(dataclasses.replace(plan, params=1.01 * limit), optimizer)
    assert told.startswith('Start with DEF-Q') and re.search(
        f'not been trained at this size[^$]*{words}', told
    )
    assert 'MaxText' not in advised(dataclasses.replace(SLOW, latency=0.05), 'sgd')  # which has no SGD


def test_a_message_longer_than_a_gradient_is_not_called_hidden():
    names = [
        each.name
        for plan in (SLOW, dataclasses.replace(SLOW, bandwidth=1e6))
        for each in comparison.compare(plan)
    ]
    assert [name.rpartition(', ')[2] for name in names if 'Streaming' in name] == ['hidden', 'partly hidden']


@pytest.mark.parametrize('optimizer', comparison.OPTIMIZERS)
def test_what_a_device_holds_is_what_the_optimizers_do(optimizer):
    """Besides the state, parameters and gradients; and the point of the gradients, but for PowerSGD."""
    plan = dataclasses.replace(SLOW, params=2**16)
    params = {'w': jnp.zeros((256, 256))}
    for method in filter(lambda method: method.paste, comparison.compare(plan, 50, optimizer)):
        names = {'rate': 0.1, 'def_jax': def_jax, 'optax': optax}
        exec(method.paste, names)
        state = sum(x.nbytes for x in jax.tree.leaves(names['optimizer'].init(params)))
        others = 2 if method.family == 'PowerSGD' else 3
        assert method.memory == pytest.approx(state + others * params['w'].nbytes, rel=0.05), method.name


@pytest.mark.parametrize('optimizer', [None, *comparison.OPTIMIZERS])
@pytest.mark.parametrize(('in_flight', 'gpus'), [(True, 1), (False, 1), (False, 8)])
def test_every_line_to_paste_makes_an_optimizer(optimizer, in_flight, gpus):
    other = {'sgd': 'adamw', 'adamw': 'sgd'}.get(optimizer, 'no optimizer')
    plan = dataclasses.replace(SLOW, in_flight=in_flight, gpus_per_link=gpus)
    for method in filter(lambda method: method.paste, comparison.compare(plan, 64, optimizer)):
        names = {'rate': 0.1, 'def_jax': def_jax, 'optax': optax}
        exec(method.paste, names)
        names['optimizer'].init({'w': jnp.zeros((8, 8))})
        assert (optimizer or 'adamw') in method.paste and f'{other}(rate' not in method.paste


def test_a_link_is_fitted():
    """Exactly where the model holds; without latency or a slope where the times have none."""
    plan = Plan(params=1, step_time=1, bandwidth=3e8, workers=8, latency=2e-5)
    times = {4 * n: plan.all_reduce(n) for n in (2**10, 2**16, 2**20)}
    assert measure.fit(8, times) == pytest.approx((3e8, 2e-5))
    assert measure.fit(2, {1000: 1e-3, 2000: 3e-3})[1] == 0
    bandwidth, latency = measure.fit(2, {1000: 2e-3, 2000: 1e-3})
    assert bandwidth > 0 and latency > 0


def test_a_link_is_measured(capsys):
    """Between fake devices of one process, which is no network, as it says."""
    link = measure.measure_link((2**10, 2**14), repeats=3)
    assert (link.workers, link.devices) == (jax.device_count(), 1)
    assert link.bandwidth > 0 and link.latency >= 0 and list(link.times) == [2**10, 2**14]
    assert 'this is no network' in link.describe()
    assert main(['--params=1e6', '--step-time=1', '--measure', '--workers=3']) == 0
    output = capsys.readouterr().out
    assert 'Here there are 3.' in output and f'Measured between {jax.device_count()} devices' in output
    assert re.search(r'A link passes .* Gbit/s \(`--measure`\) and .* a message \(`--measure`\)', output)


@pytest.mark.parametrize(
    ('text', 'bits'),
    [
        *(('10gbit', 10e9), ('800 mbit', 8e8), ('1e9', 1e9), ('2.5Gbps', 2.5e9), ('56k', 56e3)),
        *(('5.6e+4', 56e3), ('1e-3gbit', 1e6)),
        *(('1 Gb/s', 1e9), ('10GBps', 80e9), ('10 GB/s', 80e9)),
    ],
)
def test_bandwidths(text, bits):
    assert parse_bandwidth(text) == bits


def test_sizes():
    found = [parse_size(text) for text in ('7B', '25.6M', '1.3e9', '350 m', '80GB', '2.5T', '12')]
    assert found == [7e9, 25.6e6, 1.3e9, 350e6, 80e9, 2.5e12, 12]
    for text in ('', 'B', '7X', '7BB', '7 billion', '-1M', None):
        with pytest.raises(ValueError, match=r"size=.* must be a number such as '7B'"):
            parse_size(text)


def test_impossible_values():
    with pytest.raises(ValueError, match='fsdp=True needs gpus_per_link > 1'):
        dataclasses.replace(SLOW, fsdp=True)
    for text in ('', 'fast', '10 GB', 'gbit', '-1gbit', '1.2.3', None):
        with pytest.raises(ValueError, match=r"bandwidth=.* must be in bits per second, such as '10gbit'"):
            parse_bandwidth(text)
    bad = [(f.name, value) for f in dataclasses.fields(Plan) for value in (-1, math.nan, 1e300, '64', None)]
    bad.remove(('overlap', None))  # unknown
    for field, value in [*bad, ('overlap', 2), ('step_time', 0)]:
        with pytest.raises(ValueError, match=rf'{field}=.* must be (a number in|True or False)'):
            dataclasses.replace(SLOW, **{field: value})
