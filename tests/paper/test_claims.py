"""The page of claims says what the committed runs say."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from configs import claims as committed
from paper import cells, claims, finished_runs
from paper.claims import Claim, Source
from paper.statistics import Difference

ROOT = Path(__file__).resolve().parents[2]
HEADINGS = {  # by the name of the data in docs/results.md
    'CIFAR-10': "The paper's Table 1 on CIFAR-10",
    'digits': "The paper's Table 1 on digits",
    'a transformer, 115 k, Python source': 'AdamW on text',
    'the same': 'AdamW on text',
}
IN_FULL = {  # by the short form in docs/results.md
    'past the paper: DEF with four changes (shuffled, balanced, λ estimated, no momentum) is ahead of the '
    "paper's setting at 256": "ours, balanced, is ahead of the paper's DEF at 256",
    "past the paper: at 256 it equals the paper's setting at 64": (
        "ours, balanced, at 256 equals the paper's DEF at 64"
    ),
    'past the paper: at 256 it equals SGD': 'CIFAR-10: ours, balanced, equals SGD at 256',
    'past the paper: at 16 it equals SGD': 'CIFAR-10, reduced: ours equals SGD at 16',
    "past the paper: at 16 it is ahead of the paper's setting at 2": (
        "CIFAR-10, reduced: ours at 16 is ahead of the paper's DEF at 2"
    ),
    "past the paper: it is ahead of the paper's setting at 1024": (
        "digits: ours is ahead of the paper's DEF at 1024, y"
    ),
    'past the paper: it equals SGD at 1024': (
        'digits: ours (shuffled, balanced, λ from the messages, no momentum) equals SGD at 1024, y'
    ),
    '[`def_adamw`](adamw.md), 5,000 steps with 8 workers, ends within 0.03 nats a byte of tuned AdamW '
    'at 16, 0.08 at 64': '`def_adamw` ends within 0.03 of tuned AdamW at 16, 0.08 at 64',
    'in int8 (`wire_dtype`), at the bytes of 64, it ends within 0.03': (
        'at the bytes of 64, in int8 at ratio 16, it ends within 0.03'
    ),
}


def test_the_committed_page_and_the_short_form_follow_from_the_runs():
    text = (ROOT / 'results' / 'claims.md').read_text(encoding='utf-8')
    assert claims.page(text, claims.tables(committed.get_config().claims, ROOT / 'results')) == text
    results = (ROOT / 'docs' / 'results.md').read_text(encoding='utf-8')
    short = results.partition('| claim |')[2].partition('\n\n')[0]
    rows = [row.strip('| ').split(' | ') for row in short.splitlines()[2:]]
    assert len(rows) >= 6
    for claim, data, *numbers in rows:  # the difference and its interval, seeds and outcome
        heading = HEADINGS[data] if not claim.startswith('past the paper') else 'Past the paper'
        section = text.partition(f'\n## {heading}')[2].partition('\n## ')[0]
        start = IN_FULL.get(claim, claim.removesuffix(', within half a point'))
        assert re.search(rf'\| {re.escape(start)}.*\| {re.escape(" | ".join(numbers))} \|', section), claim


@pytest.mark.parametrize(
    ('mean', 'error', 'equal', 'ahead'),
    [
        (0.0, 0.1, 'holds', 'open'),  # ±0.24 at 90 %
        (0.3, 0.1, 'open', 'open'),  # 0.3 ± 0.32 at 95 %
        (0.4, 0.1, 'open', 'holds'),
        (0.3, 0.01, 'holds', 'holds'),
        (2.0, 0.1, 'does not hold', 'holds'),
        (-2.0, 0.1, 'does not hold', 'does not hold'),
        (-2.0, 1.0, 'open', 'open'),
        (0.25, 0.0, 'open', 'open'),  # no width
        (0.0, 0.0, 'holds', 'open'),
        (20.0, math.nan, 'open', 'open'),  # a single seed
    ],
)
def test_outcomes(mean, error, equal, ahead):
    seeds = 1 if math.isnan(error) else 4
    difference = Difference(mean, error, seeds, seeds - 1)
    assert (claims.outcome('equal', difference), claims.outcome('ahead', difference)) == (equal, ahead)


def test_a_cell_that_is_not_there_is_refused():
    claim = Claim('a claim', '', Source('table1_digits', '65', 'DEF'), None, 'diverges')
    with pytest.raises(ValueError, match='names no cell with finished runs'):
        claims.tables([('heading', [claim])], ROOT / 'results')


def test_the_gap_to_sgd_is_in_training():
    """What the pages say of the reason, from the runs on CIFAR-10."""
    folder = ROOT / 'results' / 'cifar10'
    table = json.loads((folder / 'sweep.json').read_text(encoding='utf-8'))
    done = [cell for cell in cells.of_table(table, finished_runs.read(folder)) if cell.results]
    sgd, *others = [cell for cell in done if not cell.point.endswith('_running')]
    test = np.array([cell.mean - sgd.mean for cell in others])
    train = np.array([training_accuracy(cell) - training_accuracy(sgd) for cell in others])
    slope, correlation = test @ train / (train @ train), np.corrcoef(test, train)[0, 1]
    visits = [np.log(cell.results[0]['communication']['visits_per_block']) for cell in others]
    said = f'{slope:.2f} times the gap in training accuracy, r = {correlation:.3f}'
    assert (len(others), said) == (14, '0.94 times the gap in training accuracy, r = 0.998')
    assert f'{np.corrcoef(test, visits)[0, 1]:.2f}' == '0.05'
    for page in ('docs/paper_tables.md', 'results/claims.md'):
        text = ' '.join((ROOT / page).read_text(encoding='utf-8').split())
        assert said in text
        assert f'{training_accuracy(sgd):.1f} %' in text


def training_accuracy(cell):
    return 100 * np.mean([result['metrics'][f'train_accuracy_{cell.point}'] for result in cell.results])
