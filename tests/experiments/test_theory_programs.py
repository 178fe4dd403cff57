"""The programs of experiments/theory run, shortened: they are not on any other path."""

import importlib
import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / 'experiments' / 'theory'
SHORT = {
    'averaging': {'SEEDS': 2, 'STEPS': 50, 'DELTAS': (0.1, 1.0)},
    'distance': {'SEEDS': 2, 'STEPS': 50},
    'figure3': {},
    'rounding': {'SEEDS': 2, 'STEPS': 40, 'EVERY': 20, 'BITS': (2,)},
    'stability': {'SEEDS': 2, 'STEPS': 300, 'DELTAS': (1 / 4,)},
    'step_size': {'SEEDS': 2, 'NOISE': {64: 1e-10}},
    'without_batchnorm': {'SEEDS': 2, 'STEPS': 70, 'RATIOS': (64,), 'WINDOWS': {'10': (70, 70)}},
}


@pytest.mark.slow
@pytest.mark.parametrize('name', SHORT)
def test_a_program_of_theory_publishes_its_table(name, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, 'argv', [name])
    program = importlib.import_module(name)
    for constant, value in SHORT[name].items():
        monkeypatch.setattr(program, constant, value)
    monkeypatch.setattr(program.reporting, 'RESULTS', tmp_path)
    program.main()
    assert json.loads((tmp_path / f'{name}.json').read_text())['table']
    assert (tmp_path / f'{name}.png').stat().st_size


def test_every_program_of_theory_is_run():
    assert {path.stem for path in FOLDER.glob('*.py')} == SHORT.keys() | {'bounds', 'reporting'}
