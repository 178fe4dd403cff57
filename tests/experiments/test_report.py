"""The table of runs: means over seeds, one row a point, and clear errors for what cannot be read."""

import json
from pathlib import Path

import pytest

from def_jax.experiments import report

ROOT = Path(__file__).parents[2]


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
    x, y = report.settings_table(list(report.read_results(tmp_path).values())).splitlines()[2:]
    assert '| 0, 1 | x (DEF-A) | 91.00 ± 1.41 |' in x
    assert '| y = x + mean residual (DEF) | 81.00 ± 1.41 |' in y


def test_settings_do_not_share_a_row(tmp_path):
    write(tmp_path, result(0, 0.90), result(0, 0.95, learning_rate=1.0))
    assert len(report.settings_table(list(report.read_results(tmp_path).values())).splitlines()) == 2 + 4


def test_a_diverged_run_is_reported_not_averaged(tmp_path):
    write(tmp_path, result(0, 0.90), result(1, 0.1, status='diverged'))
    assert 'diverged in 1 of 2' in report.settings_table(list(report.read_results(tmp_path).values()))


def test_nothing_to_report(tmp_path):
    with pytest.raises(ValueError, match=r'holds no finished run. Train into it first'):
        report.read_results(tmp_path)


def test_a_result_cut_in_half_is_named(tmp_path):
    write(tmp_path, result(0, 0.90))
    path = tmp_path / 'run0' / 'result.json'
    path.write_text(path.read_text()[:50])
    with pytest.raises(
        ValueError, match=r'run0.result.json is not a whole result. Delete it and start its run'
    ):
        report.read_results(tmp_path)


@pytest.mark.parametrize(
    'folder',
    sorted({path.parents[2] for path in (ROOT / 'results').rglob('result.json')}),
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_committed_tables_are_those_of_the_committed_runs(folder, tmp_path):
    report.report(folder, tmp_path / folder.name)
    tables, _, command = (tmp_path / folder.name / 'README.md').read_text().rpartition('Written by')
    committed, _, committed_command = (folder / 'README.md').read_text().rpartition('Written by')
    assert tables == committed
    assert 'def_jax.experiments.report' in command
    assert f'--workdir={folder.relative_to(ROOT)}`' in committed_command
    if (folder / 'table.csv').exists():
        assert (tmp_path / folder.name / 'table.csv').read_text() == (folder / 'table.csv').read_text()


def test_a_table_that_cannot_be_read(tmp_path):
    write(tmp_path, result(0, 0.90))
    (tmp_path / 'sweep.json').write_text('{"title": ')
    with pytest.raises(ValueError, match=r'sweep.json cannot be read .* Start the sweep again'):
        report.report(tmp_path, tmp_path / 'report')
    assert not (tmp_path / 'report').exists()
