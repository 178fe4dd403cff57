"""The page of claims says what the committed runs say."""

import re
from pathlib import Path

import pytest

from configs import claims as committed
from def_jax.experiments import claims
from def_jax.experiments.claims import Claim, Source
from def_jax.experiments.statistics import Difference

ROOT = Path(__file__).resolve().parents[2]


def test_the_committed_page_and_the_short_form_follow_from_the_runs():
    text = (ROOT / 'results' / 'claims.md').read_text(encoding='utf-8')
    assert claims.page(text, claims.tables(committed.get_config().claims, ROOT / 'results')) == text
    readme = (ROOT / 'README.md').read_text(encoding='utf-8')
    short = readme.partition('| claim |')[2].partition('\n\n')[0]
    rows = [row.strip('| ').split(' | ') for row in short.splitlines()[2:]]
    assert len(rows) >= 6
    for row in rows:  # the difference and its interval, seeds and outcome
        assert re.search(rf'\| {re.escape(" | ".join(row[2:5]))} \|', text), row


@pytest.mark.parametrize(
    ('mean', 'error', 'equal', 'ahead'),
    [
        (0.0, 0.1, 'holds', 'does not hold'),  # ±0.24 at 90 %
        (0.3, 0.1, 'open', 'open'),  # 0.3 ± 0.32 at 95 %
        (0.4, 0.1, 'open', 'holds'),
        (0.3, 0.01, 'holds', 'holds'),
        (2.0, 0.1, 'does not hold', 'holds'),
        (-2.0, 0.1, 'does not hold', 'does not hold'),
        (-2.0, 1.0, 'open', 'open'),
        (0.25, 0.0, 'open', 'open'),  # no width
        (0.0, 0.0, 'holds', 'does not hold'),
    ],
)
def test_outcomes(mean, error, equal, ahead):
    difference = Difference(mean, error, 4)
    assert (claims.outcome('equal', difference), claims.outcome('ahead', difference)) == (equal, ahead)


def test_one_seed_decides_nothing():
    assert claims.outcome('ahead', Difference(20.0, float('nan'), 1)) == 'open'


@pytest.mark.parametrize('source', [Source('table1_digits', '65', 'DEF'), Source('table1_digits', '64', 'D')])
def test_a_cell_that_is_not_there_is_refused(source):
    claim = Claim('a claim', '', source, None, 'diverges')
    with pytest.raises(ValueError, match='names no cell with finished runs'):
        claims.tables([('heading', [claim])], ROOT / 'results')


def test_a_page_without_marks_is_refused():
    with pytest.raises(ValueError, match='the page needs the lines'):
        claims.page('# A page', 'tables')
