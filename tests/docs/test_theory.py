"""Theorem 4.3: the corrected condition, the bound, a run that breaks the stated one, the page's numbers."""

import json
import math
import re
from pathlib import Path

import bounds
import jax.numpy as jnp
import numpy as np
import pytest
import step_size

import def_jax

CONDITION = {'smoothness': 2.0, 'num_workers': 16, 'detach': 0.3, 'delta': 1 / 64}
SETTING = CONDITION | {
    'initial_gap': 2.0,
    'learning_rate': 0.001,
    'num_steps': 10**5,
    'variance': 0.3,
    'second_moment': 1.0,
}


def b3(learning_rate, smoothness, num_workers, detach, delta):
    beta = -1 + math.sqrt((1 - delta / 2) / (1 - delta))
    b2 = abs(1 / num_workers - detach) + (num_workers - 1) / num_workers
    return (1 - delta) * (1 + 1 / beta) * 2 * b2**2 * learning_rate**2 * smoothness**2


@pytest.mark.parametrize('delta', [0.5, 1 / 1024])
@pytest.mark.parametrize(('num_workers', 'detach'), [(4, 1.0), (16, 0.3), (1, 0.5)])
def test_the_largest_rate_makes_b3_half_of_delta(num_workers, detach, delta):
    condition = CONDITION | {'num_workers': num_workers, 'detach': detach, 'delta': delta}
    rate = bounds.largest_learning_rate(**condition)
    assert rate <= 1 / 8
    if rate < 1 / 8:
        np.testing.assert_allclose(b3(rate, **condition), delta / 2, rtol=1e-9)
    else:
        assert b3(rate, **condition) <= delta / 2


def test_bound_is_equation_17_term_by_term():
    descent, noise = 4 * 2.0 / (0.001 * 10**5), 2 * 0.001 * 2.0 * 0.3 / 16
    k, detach, delta = 16, 0.3, 1 / 64
    spread = (k - 1) / k**2 * 0.3 + (1 / k - detach) ** 2 * 0.3 + 2 * (1 - detach) ** 2 * 1.0
    last = 4 * 0.001**2 * 2.0**2 * spread / (np.sqrt((1 - delta / 2) / (1 - delta)) - 1) ** 2
    np.testing.assert_allclose(bounds.convergence_bound(**SETTING).value, descent + noise + last)


def test_a_rate_that_the_paper_allows_and_its_proof_does_not():
    stated = 1 / (4 * 2.0)
    with pytest.raises(ValueError, match=r'learning_rate=0\.125 must be .*0\.0016.*lower it, or raise delta'):
        bounds.convergence_bound(**SETTING | {'learning_rate': stated})


def test_the_counterexample_breaks_the_stated_condition():
    assert min(step_size.worst(256, 1 / 4, 1000)) > 1  # η = 1/(4L)
    assert max(step_size.worst(256, 1 / 16, 1000)) < 1


@pytest.mark.parametrize(('ratio', 'shapes', 'blocks'), [(3, [10], 4), (64, [512, 10], 64), (4, [0, 8], 4)])
def test_delta_is_the_least_probability_of_an_element(ratio, shapes, blocks):
    params = [jnp.zeros(shape) for shape in shapes]
    assert bounds.compression_delta(def_jax.random_block(ratio), params) == 1 / blocks


# --- The page ---

ROOT = Path(__file__).parents[2]
NUMBER = re.compile(r'[-−]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?')


def numbers(text):
    return [float(n.replace(',', '').replace('−', '-')) for n in NUMBER.findall(text)]


def sections():
    """The tables of each section, as lists of rows, by the program that the text below them names."""
    page = (ROOT / 'docs/theory/index.md').read_text().partition('\n## ')[2]
    parts = re.split(r'`python experiments/theory/(\w+)\.py`', page)
    for text, program in zip(parts[::2], parts[1::2], strict=False):
        tables = re.findall(r'(?:^\|.*\n)+', text, re.MULTILINE)
        yield program, [row for table in tables for row in table.splitlines()[2:]]


@pytest.mark.parametrize(('program', 'rows'), sections(), ids=[program for program, _ in sections()])
def test_the_numbers_of_a_table_are_those_of_its_program(program, rows):
    written = json.loads((ROOT / f'results/theory/{program}.json').read_text())['table']
    known = {n for line in written for value in line.values() for n in numbers(str(value))}
    shown = [cell for row in rows for cell in row.split('|')[2:-1] if '/' not in cell and 'c =' not in cell]
    assert len(shown) >= 12
    for cell in shown:
        for text in NUMBER.findall(cell):
            (value,) = numbers(text)
            decimals = len(text.partition('.')[2])
            # The page rounds what the program printed, or has its digits as they are.
            near = 0.5000001 * 10.0**-decimals if decimals or abs(value) < 100 else 0.01 * abs(value)
            assert any(abs(value - n) <= near for n in known), (cell, text)


def test_the_numbers_of_few_bits_are_those_of_their_program():
    written = json.loads((ROOT / 'results/theory/rounding.json').read_text())['table']
    found = {
        (each['bits'], each['of']): {name: numbers(text)[0] for name, text in each.items() if name != 'of'}
        for each in written
    }
    page = (ROOT / 'docs/theory/index.md').read_text().partition('## Few bits')[2]
    rows = [line.split(' | ') for line in page.splitlines() if line.startswith(('| D_b', '| δ'))]
    for column, bits in enumerate((1, 2, 4, 8), start=1):
        gaussian, messages = (found[str(bits), of] for of in ('Gaussian', 'messages'))
        ratio = 64 * bits / 32
        expected = [gaussian['D_b'], messages['D'], gaussian['R·δ(b)'] / ratio, messages['R·δ'] / ratio]
        for row, value in zip(rows, expected, strict=True):
            text = NUMBER.findall(row[column])[0]
            assert abs(float(text) - value) <= 0.51 * 10.0 ** -len(text.partition('.')[2]), (row[0], bits)
        growth = page.partition('second rounding takes: ')[2].replace(' and ', ', ').split(', ')[column - 1]
        text = NUMBER.findall(growth)[0]
        near = 0.51 * 10.0 ** -len(text.partition('.')[2])
        assert abs(float(text) - messages['D of the second rounding']) <= near, bits
    for of, delta, times in (
        ('Gaussian', 'R·δ(b)', r'(\d+) times smaller'),
        ('messages', 'R·δ', r'it is (\d+) times smaller'),
    ):
        here, float32 = math.sqrt(1 - found['2', of][delta] / 4), math.sqrt(1 - 1 / 64)
        bounds_of_a3 = ((a / (1 - a)) ** 2 for a in (float32, here))  # at the best β
        expected = next(bounds_of_a3) / next(bounds_of_a3)
        assert abs(float(re.search(times, page)[1]) / expected - 1) < 0.02, (of, expected)
