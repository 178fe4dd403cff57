"""Pages of finished runs: means over seeds, one row a point, and clear errors for what cannot be read."""

import importlib
import json
import subprocess
from pathlib import Path

import pytest

from configs.tables import tables as table_files
from def_jax.trainer import results
from paper import cells, finished_runs, report, tables

ROOT = Path(__file__).parents[2]
NAME = 'method=def,ratio=64,learning_rate=0.1,seed=0'


def result(accuracy, *, seed=0, loss=0.5, status='finished', **config):
    record = {'test_accuracy_x': accuracy, 'test_accuracy_y': accuracy - 0.25, 'train_loss': loss}
    return {
        'title': 'DEF at ratio 64: vgg_digits on digits, 16 workers',
        'points': ['x', 'y'],
        'answers': {'x': 'DEF-A', 'y': 'DEF'},
        'status': status,
        'metrics': record,
        'communication': {'true_ratio': 62.0, 'visits_per_block': 31.6, 'megabytes_sent': 2.3},
        'curve': [record | {'epoch': epoch} for epoch in (1, 2)],
        'config': {
            'method': 'def',
            'ratio': 64,
            'seed': seed,
            'learning_rate': 0.1,
            'dataset': 'digits',
            'fake_devices': True,
            **config,
        },
        'environment': {
            'python': '3.11',
            'packages': {'jax': '1', 'flax': '2', 'optax': '3'},
            'device': 'cpu',
            'num_devices': 1,
            'commit': 'abc',
        },
    }


def a_table():
    spec = table_files.table(
        'A table',
        table_files.digits_base(),
        [table_files.cell(64, 'DEF', method='def', ratio=64)],
        rows='ratio',
        seeds=(0,),
    )
    return json.loads(spec.to_json())


def write(folder, *contents):
    for i, content in enumerate(contents):
        path = folder / f'run{i}' / 'result.json'
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(content))


# --- Files ---


def test_settings_have_rows_of_their_own_with_means_and_deviations_over_seeds(tmp_path):
    runs = [result(0.92, seed=1), result(0.90), result(0.95, learning_rate=1.0)]
    runs.append(result(0.1, seed=1, status='diverged', learning_rate=1.0))  # is reported, not averaged
    write(tmp_path, *runs)
    x, y, diverged, _ = tables.settings(cells.of_settings(finished_runs.read(tmp_path))).splitlines()[2:]
    assert '| 0, 1 | x (DEF-A) | 91.00 ± 1.41 |' in x
    assert '| y = x + mean residual (DEF) | 66.00 ± 1.41 |' in y
    assert '| diverges (1 of 2) |' in diverged


def test_run_folders_are_newer_than_the_file_beside_them(tmp_path):
    finished_runs.write(tmp_path, {'run0': result(0.5)})
    assert finished_runs.read(tmp_path) == {'run0': result(0.5)}
    write(tmp_path, result(0.9))
    assert finished_runs.read(tmp_path) == {'run0': result(0.9)}


@pytest.mark.parametrize(
    'folder',
    sorted(
        page.parent
        for page in (ROOT / 'results').rglob('README.md')
        if 'Written by `python -m paper.report' in page.read_text()
    ),
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_committed_tables_are_those_of_the_committed_runs(folder, tmp_path, monkeypatch):
    drawn = []
    for name in ('plot_curves', 'plot_rows', 'plot_diagnostics'):  # pictures take seconds
        file = name.removeprefix('plot_') + '.png'
        monkeypatch.setattr(
            report.plots, name, lambda path, *_, file=file: drawn.append(file) or (folder / file).exists()
        )
    report.report(folder, tmp_path / folder.name)
    page, _, command = (tmp_path / folder.name / 'README.md').read_text().rpartition('Written by')
    committed, _, committed_command = (folder / 'README.md').read_text().rpartition('Written by')
    assert page == committed
    assert 'paper.report' in command
    assert f'--workdir={folder.relative_to(ROOT)}`' in committed_command
    kept = finished_runs.read(tmp_path / folder.name)
    assert kept.items() <= finished_runs.read(folder).items()
    assert {path.name for path in folder.glob('*.png')} <= set(drawn)
    if (folder / 'table.csv').exists():
        assert (tmp_path / folder.name / 'table.csv').read_text() == (folder / 'table.csv').read_text()


def test_results_are_few_files_with_short_names():
    tracked = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True).stdout.split('\n')
    assert len([path for path in tracked if path.startswith('results/')]) <= 150
    assert max(map(len, tracked), default=0) <= 100


# --- What cannot be read ---


WHOLE = result(0.9)
DAMAGED = {
    'cut in half': json.dumps(WHOLE)[:50].encode(),
    'no keys': b'{"status": "finished"}',
    'nested too deeply': b'[' * 100_000,
}
OTHERS = {
    'metrics of no type': {'metrics': None},
    'a figure that is none': {'metrics': WHOLE['metrics'] | {'test_accuracy_x': None}},
    'traffic that is none': {'communication': WHOLE['communication'] | {'true_ratio': None}},
    'no packages': {'environment': WHOLE['environment'] | {'packages': None}},
    'a setting that is missing': {
        'config': {name: value for name, value in WHOLE['config'].items() if name != 'learning_rate'}
    },
}
DAMAGED |= {name: json.dumps(WHOLE | changes).encode() for name, changes in OTHERS.items()}


@pytest.mark.parametrize('content', DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_result_and_a_damaged_line_are_named(tmp_path, content):
    with pytest.raises(ValueError, match=r'contains no finished run. Train one first'):
        finished_runs.read(tmp_path)
    assert results.is_whole(WHOLE)
    write(tmp_path, WHOLE)
    (tmp_path / 'run0' / 'result.json').write_bytes(content)
    assert results.read(tmp_path / 'run0') is None
    with pytest.raises(ValueError, match=r'run0.result.json is incomplete. Delete it and restart its'):
        report.report(tmp_path, tmp_path / 'report')
    assert not (tmp_path / 'report').exists()
    kept = tmp_path / 'kept'
    kept.mkdir()
    finished_runs.write(kept, {'run0': WHOLE})
    with (kept / 'runs.jsonl').open('ab') as file:
        file.write(content)
    message = r'runs.jsonl, line 2, is not a complete result|runs.jsonl cannot be read'
    with pytest.raises(ValueError, match=message):
        finished_runs.read(kept)


def table_with(**changes):
    """The JSON of a table in which some entries, of it or of its cell, are others."""
    table = a_table()
    for key, value in changes.items():
        (table if key in table else table['cells'][0])[key] = value
    return json.dumps(table).encode()


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'{"title": ', r'sweep.json cannot be read .* Restart the sweep'),
        (b'{"a": 1}', r'sweep.json is not a table: it has no title, rows, base, cells'),
        (table_with(cells=5), r'sweep.json is not a table'),
        (table_with(cells=[{'row': 1}]), r'a cell in .* has no column, paper, set'),
        (table_with(base={}), r'base in .* has no model, dataset'),
        (table_with(seeds=3), 'is not a table'),
    ],
)
def test_a_table_that_cannot_be_read(tmp_path, content, message):
    write(tmp_path, WHOLE)
    (tmp_path / 'sweep.json').write_bytes(content)
    with pytest.raises(ValueError, match=message):
        report.report(tmp_path, tmp_path / 'report')
    assert not (tmp_path / 'report').exists()


def test_a_point_that_was_not_evaluated(tmp_path):
    finished_runs.write(tmp_path, {NAME: result(0.9)})
    table = a_table()
    table['cells'][0]['point'] = 'x_running'
    with pytest.raises(ValueError, match=r"not evaluated at 'x_running'.*require config.recalibrate"):
        report.report(tmp_path, tmp_path / 'report', table)


# --- Commands ---


def test_a_command_that_moved_says_where():
    message = 'def_jax.experiments moved to paper, which is not installed'
    with pytest.raises(ModuleNotFoundError, match=message):
        importlib.import_module('def_jax.experiments.sweep')
