"""Pages of finished runs: means over seeds, one row a point, and clear errors for what cannot be read."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from configs.tables import tables as table_files
from def_jax.trainer import results
from paper import cells, finished_runs, plots, report, tables

ROOT = Path(__file__).parents[2]
NAME = 'method=def,ratio=64,learning_rate=0.1,seed=0'


def result(seed, accuracy, *, status='finished', **config):
    record = {'test_accuracy_x': accuracy, 'test_accuracy_y': accuracy - 0.1, 'train_loss': 0.5}
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


def settings_of(folder):
    return tables.settings(cells.of_settings(finished_runs.read(folder)))


# --- Settings ---


def test_mean_and_sample_deviation_over_seeds(tmp_path):
    write(tmp_path, result(1, 0.92), result(0, 0.90))
    x, y = settings_of(tmp_path).splitlines()[2:]
    assert '| 0, 1 | x (DEF-A) | 91.00 ± 1.41 |' in x
    assert '| y = x + mean residual (DEF) | 81.00 ± 1.41 |' in y


def test_settings_do_not_share_a_row(tmp_path):
    write(tmp_path, result(0, 0.90), result(0, 0.95, learning_rate=1.0))
    assert len(settings_of(tmp_path).splitlines()) == 2 + 4


def test_a_diverged_run_is_reported_not_averaged(tmp_path):
    write(tmp_path, result(0, 0.90), result(1, 0.1, status='diverged'))
    assert '| diverges (1 of 2) |' in settings_of(tmp_path)


# --- Files ---


def test_what_models_generate_is_shown_once_a_title(tmp_path):
    write(tmp_path, *(result(seed, 0.9) | {'sample': f'def f():\n  ``` {seed}'} for seed in (0, 1)))
    report.report(tmp_path, tmp_path)
    page = (tmp_path / 'README.md').read_text()
    assert (
        '## Samples\n\nDEF at ratio 64: vgg_digits on digits, 16 workers:\n\n    def f():\n      ``` 0\n\n'
        in page
    )
    assert '``` 1' not in page


def test_runs_are_kept_in_one_file_that_the_page_can_be_written_from(tmp_path):
    runs, kept = tmp_path / 'runs', tmp_path / 'kept'
    write(runs, result(0, 0.90), result(1, 0.92))
    report.report(runs, kept)
    assert {path.name for path in kept.iterdir()} == {'README.md', 'runs.jsonl', 'curves.png'}
    assert finished_runs.read(kept) == finished_runs.read(runs)
    before = {path.name: path.read_bytes() for path in kept.iterdir()}
    for name in ('README.md', 'curves.png'):
        (kept / name).unlink()
    report.report(kept, kept)
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == before


def test_run_folders_are_newer_than_the_file_beside_them(tmp_path):
    finished_runs.write(tmp_path, {'run0': result(0, 0.5)})
    assert finished_runs.read(tmp_path) == {'run0': result(0, 0.5)}
    write(tmp_path, result(0, 0.9))
    assert finished_runs.read(tmp_path) == {'run0': result(0, 0.9)}


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


@pytest.mark.parametrize(
    ('environment', 'drawn'),
    [
        ({'device': 'NVIDIA H100 (gpu)', 'num_devices': 8}, True),
        ({'device': 'cpu (cpu)', 'num_devices': 4, 'num_processes': 4}, True),
        ({'device': 'cpu (cpu)', 'num_devices': 16}, False),  # JAX_NUM_CPU_DEVICES=16
    ],
)
def test_seconds_are_an_axis_only_where_devices_are_apart(tmp_path, monkeypatch, environment, drawn):
    run, drawn_against = result(0, 0.9, fake_devices=False), []
    run['environment'] |= environment
    run['curve'] = [record | {'seconds': record['epoch']} for record in run['curve']]
    monkeypatch.setattr(plots, 'measure_axis', lambda axes, measure, x='epoch': drawn_against.append(x))
    plots.plot_curves(tmp_path / 'curves.png', 'ratio', cells.of_table(a_table(), {NAME: run}))
    assert ('seconds' in drawn_against) == drawn


def test_results_are_few_files_with_short_names():
    tracked = subprocess.run(
        ['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True
    ).stdout.splitlines()
    assert len([path for path in tracked if path.startswith('results/')]) <= 155
    assert max(map(len, tracked), default=0) <= 100


# --- What cannot be read ---


def test_nothing_to_report(tmp_path):
    with pytest.raises(ValueError, match=r'contains no finished run. Train one first'):
        finished_runs.read(tmp_path)


def damaged():
    yield pytest.param(json.dumps(result(0, 0.9))[:50].encode(), id='cut in half')
    yield pytest.param(b'{"status": "finished"}', id='no keys')
    yield pytest.param(json.dumps(result(0, 0.9) | {'metrics': {}}).encode(), id='no metrics')
    yield pytest.param(json.dumps(result(0, 0.9) | {'curve': 5}).encode(), id='another type')
    yield pytest.param(b'5', id='no object')
    yield pytest.param(b'\xff\xfe', id='not UTF-8')


@pytest.mark.parametrize('content', damaged())
def test_a_damaged_result_is_named(tmp_path, content):
    write(tmp_path, result(0, 0.90))
    (tmp_path / 'run0' / 'result.json').write_bytes(content)
    assert results.read(tmp_path / 'run0') is None
    with pytest.raises(ValueError, match=r'run0.result.json is incomplete. Delete it and restart its'):
        finished_runs.read(tmp_path)
    with pytest.raises(ValueError, match=r'is incomplete'):
        report.report(tmp_path, tmp_path / 'report')
    assert not (tmp_path / 'report').exists()


@pytest.mark.parametrize('content', damaged())
def test_a_damaged_line_is_named(tmp_path, content):
    finished_runs.write(tmp_path, {'run0': result(0, 0.9)})
    with (tmp_path / 'runs.jsonl').open('ab') as file:
        file.write(content)
    with pytest.raises(
        ValueError, match=r'runs.jsonl, line 2, is not a complete result|runs.jsonl cannot be read'
    ):
        finished_runs.read(tmp_path)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'{"title": ', r'sweep.json cannot be read .* Restart the sweep'),
        (b'\xff', r'sweep.json cannot be read .* Restart the sweep'),
        (b'{"a": 1}', r'sweep.json is not a table: it has no title, rows, base, cells'),
        (b'[]', r'sweep.json is not a table'),
        (json.dumps(a_table() | {'cells': 5}).encode(), r'sweep.json is not a table'),
        (json.dumps(a_table() | {'cells': [{'row': 1}]}).encode(), r'a cell in .* has no column, paper, set'),
        (json.dumps(a_table() | {'base': {}}).encode(), r'base in .* has no model, dataset'),
    ],
)
def test_a_table_that_cannot_be_read(tmp_path, content, message):
    write(tmp_path, result(0, 0.90))
    (tmp_path / 'sweep.json').write_bytes(content)
    with pytest.raises(ValueError, match=message):
        report.report(tmp_path, tmp_path / 'report')
    assert not (tmp_path / 'report').exists()


def test_a_point_that_was_not_evaluated(tmp_path):
    finished_runs.write(tmp_path, {NAME: result(0, 0.9)})
    table = a_table()
    table['cells'][0]['point'] = 'x_running'
    with pytest.raises(ValueError, match=r"not evaluated at 'x_running'.*require config.recalibrate"):
        report.report(tmp_path, tmp_path / 'report', table)


# --- Commands ---


def command(module, *arguments):
    return subprocess.run(
        [sys.executable, '-m', module, *arguments],
        cwd=ROOT,
        env=os.environ | {'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
    )


def test_command_line_mistakes_are_one_line_each(tmp_path, monkeypatch, capsys):
    finished_runs.write(tmp_path, {NAME: result(0, 0.9)})
    (tmp_path / 'file').write_text('')

    class Flags:
        workdir, output, config = str(tmp_path), str(tmp_path / 'file' / 'page'), None

    monkeypatch.setattr(report.flags, 'FLAGS', Flags)
    assert report.main(['report']) == 2
    assert capsys.readouterr().err.startswith(f'report: --output={tmp_path}/file/page cannot be written to')
    assert report.main(['report', 'runs/x']) == 2
    assert capsys.readouterr().err.startswith("report: unexpected arguments ['runs/x']; pass folders as")
    Flags.config = table_files.digits_base()
    assert report.main(['report']) == 2
    assert capsys.readouterr().err.startswith('report: --config is not a table: it has no title, rows, base')


def test_a_command_that_moved_says_where():
    process = command('def_jax.experiments.sweep', '--workdir=runs/x')
    assert process.returncode == 1 and process.stdout == ''
    assert 'def_jax.experiments moved to paper, which is not installed' in process.stderr


@pytest.mark.parametrize(
    'changes',
    [
        {'metrics': None},
        {'metrics': {'test_accuracy_x': None, 'test_accuracy_y': 0.5, 'train_loss': 0.5}},
        {'metrics': {'test_accuracy_x': 0.5, 'test_accuracy_y': 0.5, 'train_loss': 'x'}},
        {'communication': {'true_ratio': None, 'visits_per_block': 31.6, 'megabytes_sent': 2.3}},
        {'environment': result(0, 0.9)['environment'] | {'packages': None}},
        {'config': {k: v for k, v in result(0, 0.9)['config'].items() if k != 'learning_rate'}},
    ],
)
def test_a_result_whose_figures_are_none_is_not_whole(tmp_path, changes):
    assert results.is_whole(result(0, 0.9))
    write(tmp_path, result(0, 0.9) | changes)
    with pytest.raises(ValueError, match='is incomplete'):
        finished_runs.read(tmp_path)


@pytest.mark.parametrize('name', ['run0/result.json', 'runs.jsonl', 'sweep.json'])
def test_json_that_is_nested_too_deeply_is_refused(tmp_path, name):
    if name == 'sweep.json':
        write(tmp_path, result(0, 0.9))
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('[' * 100_000)
    with pytest.raises(ValueError, match=r'complete|cannot be read'):
        report.report(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ('key', 'value'), [('seeds', 3), ('learning_rates', 3), ('row', []), ('column', {}), ('point', 3)]
)
def test_a_table_with_entries_of_another_type(tmp_path, key, value):
    write(tmp_path, result(0, 0.9))
    table = a_table()
    (table if key in table else table['cells'][0])[key] = value
    (tmp_path / 'sweep.json').write_text(json.dumps(table))
    with pytest.raises(ValueError, match='is not a table'):
        report.report(tmp_path, tmp_path)
