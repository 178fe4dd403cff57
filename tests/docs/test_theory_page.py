"""The tables of docs/theory/index.md hold the numbers that its programs wrote."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NUMBER = re.compile(r'[-−]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?')


def numbers(text):
    return [float(n.replace(',', '').replace('−', '-')) for n in NUMBER.findall(text)]


def sections():
    """The tables of each section, as lists of rows, by the program that the text below them names."""
    page = (ROOT / 'docs/theory/index.md').read_text().partition('\n## ')[2]
    parts = re.split(r'`python docs/theory/(\w+)\.py`', page)
    for text, program in zip(parts[::2], parts[1::2], strict=False):
        tables = re.findall(r'(?:^\|.*\n)+', text, re.MULTILINE)
        yield program, [row for table in tables for row in table.splitlines()[2:]]


@pytest.mark.parametrize(('program', 'rows'), sections(), ids=[program for program, _ in sections()])
def test_the_numbers_of_a_table_are_those_of_its_program(program, rows):
    written = json.loads((ROOT / f'results/theory/{program}.json').read_text())['table']
    known = sorted({abs(n) for line in written for value in line.values() for n in numbers(str(value))})
    shown = [cell for row in rows for cell in row.split('|')[2:-1] if '/' not in cell and 'c =' not in cell]
    assert len(shown) >= 12
    for cell in shown:
        for text in NUMBER.findall(cell):
            value = abs(numbers(text)[0])
            decimals = len(text.partition('.')[2])
            # The page rounds what the program printed, or has its digits as they are.
            near = 0.5000001 * 10.0**-decimals if decimals or value < 100 else 0.01 * value
            assert any(abs(value - n) <= near for n in known), (cell, text)
