"""What an update sends, as traced, against sizes worked out by hand and against the compiled program."""

import hlo
import jax.numpy as jnp
import optax
import pytest

import def_jax
from def_jax import baselines
from def_jax.traffic import Message, traffic
from def_jax.traffic.hlo import collectives

PARAMS = {'w': jnp.zeros((64, 32)), 'b': jnp.zeros(64)}


def sent(link, axis_name='workers'):
    return traffic(optax.chain(link, optax.sgd(0.1)), PARAMS, axis_name)


@pytest.mark.parametrize(
    ('link', 'operation', 'words'),
    [
        # 64 coefficients of the matrix as one chunk of 64 · 32 and 2 of the vector, each with its index.
        (baselines.demo(16, 'workers'), 'all-gather', [2 * (64 + 2)]),
        (baselines.top_k(16, 'workers'), 'all-gather', [2 * (64 + 2)]),
        # One bit of each of 2,112 elements, and two magnitudes.
        (baselines.sign_ef('workers'), 'all-gather', [66 + 2]),
        (baselines.powersgd(16, 'workers', rank=2), 'all-reduce', [2 * 64 + 64, 2 * 32]),
        (def_jax.all_reduce_mean('workers'), 'all-reduce', [64, 64 * 32]),
    ],
)
def test_what_is_sent_at_every_step(link, operation, words):
    assert sent(link) == (tuple(Message(operation, 4 * n) for n in words), ())


def test_the_steps_of_onebit_adam():
    """Dense at first; then 32 times less, as its paper says, but for a magnitude for every tensor."""
    found = sent(baselines.onebit_adam('workers'))
    assert {sum(m.bytes for m in each) for each in found.branches[0]} == {4 * (66 + 2), 4 * (64 * 32 + 64)}
    assert not found.always


def test_cser_sends_twice_in_some_steps():
    link = baselines.cser(def_jax.random_block(4), def_jax.random_block(16), 'workers', every=3)
    assert sent(link) == ((Message('all-reduce', 4 * 132),), (((), (Message('all-reduce', 4 * 528),)),))


@pytest.mark.parametrize(
    ('operation', 'passed'),  # of 120 bytes by each of 4 workers, worked out link by link
    [
        ('all-reduce', 2 * 3 * 30),
        ('reduce-scatter', 3 * 30),
        ('all-to-all', 3 * 30),
        ('all-gather', 3 * 120),
        ('collective-permute', 120),
    ],
)
def test_what_passes_over_a_link_of_a_ring(operation, passed):
    whole = Message('all-reduce', 120)
    assert Message(operation, 120).as_all_reduce(4) / whole.as_all_reduce(4) == pytest.approx(passed / 180)


def test_nothing_is_sent_without_an_axis():
    assert sent(baselines.powersgd(16, None), None) == ((), ())


@pytest.mark.parametrize(
    'link',
    [baselines.powersgd(16, 'workers', rank=2), baselines.top_k(16, 'workers'), hlo.feedback()],
    ids=['powersgd', 'top_k', 'def'],
)
def test_the_compiled_program_sends_no_more(link):
    """The HLO of a step holds the collectives of the trace."""
    optimizer, step = hlo.with_gradient(link, detached=False)
    compiled = collectives(hlo.compile_pmapped(optimizer, step, 4, hlo.BATCH).as_text())
    expected = traffic(link, hlo.make_params(), 'workers').always
    found = [(c.operation, c.passed(4).bytes) for c in compiled]
    assert sorted(found) == sorted((message.operation, message.bytes) for message in expected)
