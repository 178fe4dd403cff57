"""The table of runs: means over seeds, one row a point, and clear errors for what cannot be read."""

import json
from pathlib import Path

import pytest

from def_jax.training import report

ROOT = Path(__file__).parents[1]


def result(seed, accuracy, *, status='finished', **config):
    return {
        'title': 'DEF at ratio 64',
        'points': ['x', 'y'],
        'answers': {'x': 'DEF-A', 'y': 'DEF'},
        'status': status,
        'metrics': {'test_accuracy_x': accuracy, 'test_accuracy_y': accuracy - 0.1, 'train_loss': 0.5},
        'communication': {'true_ratio': 62.0, 'visits_per_block': 31.6, 'megabytes_sent': 2.3},
        'config': {'method': 'def', 'ratio': 64, 'seed': seed, 'data_dir': '', **config},
    }


def write(folder, *results):
    for i, content in enumerate(results):
        path = folder / f'run{i}' / 'result.json'
        path.parent.mkdir()
        path.write_text(json.dumps(content))


def test_mean_and_sample_deviation_over_seeds(tmp_path):
    write(tmp_path, result(1, 0.92), result(0, 0.90))
    x, y = report.table(report.read_results(tmp_path)).splitlines()[2:]
    assert '| 0, 1 | x (DEF-A) | 91.00 ± 1.41 |' in x
    assert '| y = x + mean residual (DEF) | 81.00 ± 1.41 |' in y


def test_settings_do_not_share_a_row(tmp_path):
    write(tmp_path, result(0, 0.90), result(0, 0.95, learning_rate=1.0))
    assert len(report.table(report.read_results(tmp_path)).splitlines()) == 2 + 4


def test_a_diverged_run_is_reported_not_averaged(tmp_path):
    write(tmp_path, result(0, 0.90), result(1, 0.1, status='diverged'))
    assert 'diverged in 1 of 2' in report.table(report.read_results(tmp_path))


def test_nothing_to_report(tmp_path):
    with pytest.raises(ValueError, match=r'holds no result.json. Train into it first'):
        report.read_results(tmp_path)


def test_a_result_cut_in_half_is_named(tmp_path):
    write(tmp_path, result(0, 0.90))
    path = tmp_path / 'run0' / 'result.json'
    path.write_text(path.read_text()[:50])
    with pytest.raises(
        ValueError, match=r'run0.result.json is not a whole result .* Delete it and run it again'
    ):
        report.read_results(tmp_path)


def test_committed_table_is_that_of_the_committed_runs():
    written = (ROOT / 'results/digits/README.md').read_text()
    assert report.table(report.read_results(ROOT / 'results/digits')) in written
