"""The league's costs, worked out by hand, what counts as its frontier, and that its pages can be written."""

import pytest

from benchmarks.league.contenders import Contender
from benchmarks.league.costs import costs
from benchmarks.league.perceptron import PERCEPTRON
from benchmarks.league.problems import PROBLEMS

SIZE = 64 * 64 + 64 + 64 * 64 + 64 + 64 * 10 + 10
SIGNS = -(-SIZE // 32) + 6  # and a magnitude for each of six tensors


@pytest.mark.parametrize(
    ('contender', 'payload', 'hops'),
    [
        (Contender('', 'sgd'), SIZE, 7 / 4),  # of 8 workers, a ring sends 2·7/8 of a message
        (Contender('', 'local_sgd', options={'every': 16}), SIZE / 16, 7 / 4),
        (Contender('', 'streaming_diloco', 4, options={'every': 4}), 561 - 0.5, 7 / 4),
        (Contender('', 'sign_ef'), SIGNS, 7),
        (Contender('', 'onebit_adam', options={'freeze_after': 200}), (SIZE + 3 * SIGNS) / 4, 0),
        (Contender('', 'powersgd', 16), 64 + 64 + 64 + 2 * 64 + 10 + 64 + 64 + 10, 7 / 4),
        # int8: in bytes, two digits for each of six tensors, and a flag.
        (Contender('', 'sparta', 16, options={'wire_dtype': 'int8'}), (561 + 6 * 2 + 1) / 4, 7 / 4),
    ],
)
def test_bytes_a_step(contender, payload, hops):
    found = costs(PERCEPTRON, contender)
    assert found['dense'] == 4 * SIZE and found['payload'] == pytest.approx(4 * payload)
    if hops:
        assert found['wire'] == pytest.approx(4 * payload * hops)


@pytest.mark.parametrize('name', PROBLEMS)
def test_every_contender_can_be_built(name):
    problem = PROBLEMS[name]
    for contender in problem.contenders:
        contender.optimizer(problem.inner(0.1, **contender.inner))
    assert len({(c.title, c.nominal) for c in problem.contenders}) == len(problem.contenders)
