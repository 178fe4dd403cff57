"""The league's costs, worked out by hand, and what counts as its frontier."""

import pytest

from benchmarks.league import __main__ as runs
from benchmarks.league import page
from benchmarks.league.contenders import CONTENDERS, Contender

SIZE = 64 * 64 + 64 + 64 * 64 + 64 + 64 * 10 + 10


@pytest.mark.parametrize(
    ('contender', 'payload', 'hops'),
    [
        (Contender('', 'sgd'), SIZE, 7 / 4),  # of 8 workers, a ring sends 2·7/8 of a message
        (Contender('', 'local_sgd', options={'every': 16}), SIZE / 16, 7 / 4),
        (Contender('', 'sign_ef'), -(-SIZE // 32) + 6, 7),
        (
            Contender('', 'onebit_adam', options={'freeze_after': 200}),
            (SIZE + 3 * (-(-SIZE // 32) + 6)) / 4,
            0,
        ),
        (Contender('', 'powersgd', 16), 64 + 64 + 64 + 2 * 64 + 10 + 64 + 64 + 10, 7 / 4),
    ],
)
def test_bytes_a_step(contender, payload, hops):
    costs = runs.costs(contender)
    assert costs['dense'] == 4 * SIZE and costs['payload'] == pytest.approx(4 * payload)
    if hops:
        assert costs['wire'] == pytest.approx(4 * payload * hops)


def test_state_is_counted_apart():
    costs = runs.costs(Contender('', 'def', 16))
    assert (costs['own_state'], costs['shared_state']) == (2, 0)  # momentum and residual
    costs = runs.costs(Contender('', 'top_k', 16))
    assert (costs['own_state'], costs['shared_state']) == (1, 1)


def test_every_contender_can_be_built():
    for contender in CONTENDERS:
        contender.optimizer(0.1)
    assert len({(c.title, c.ratio, str(c.options)) for c in CONTENDERS}) == len(CONTENDERS)


def test_the_frontier():
    def record(wire, loss):
        return {'wire': wire, 'test_loss': [[9.0, loss], [9.0, loss]]}

    records = [record(4, 0.1), record(1, 0.5), record(2, 0.6), record(3, 0.2)]
    assert [r['wire'] for r in page.frontier(records)] == [1, 3, 4]
