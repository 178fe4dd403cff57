"""The sweep: all runs of a table, none of them twice, whatever happened before."""

import json
import signal

import pytest
import rich.console
import training_fixtures as fixtures
from test_report import result as a_result

from configs.tables import tables as table_files
from def_jax.trainer import loop
from def_jax.trainer.checkpointing import workdir
from def_jax.trainer.launch import devices, interruption
from def_jax.trainer.launch.exits import EndedError
from paper import finished_runs, report, sweep

CONSOLE = rich.console.Console(quiet=True)


@pytest.fixture(autouse=True)
def programs_stay_compiled(monkeypatch):
    monkeypatch.setattr(sweep.jax, 'clear_caches', lambda: None)


@pytest.fixture
def spec(data_dir):
    cells = [
        table_files.cell(1, 'SGD', method='sgd', ratio=1),
        table_files.cell(8, 'DEF', method='def', ratio=8),
        table_files.cell(8, 'DEF-A', method='def_a', ratio=8),
    ]
    base = fixtures.tiny_config(data_dir)
    return table_files.table('A table', base, cells, rows='ratio', learning_rates=(0.1, 0.01), seeds=(0, 1))


def small(spec, **changes):
    """The table without a grid of rates, and with one seed."""
    spec = spec.copy_and_resolve_references().unlock()
    spec.update({'learning_rates': (), 'seeds': (0,)} | changes)
    return spec


@pytest.fixture
def trained(monkeypatch):
    """The names of the runs that were trained, in order; only seeming to be, at no cost."""
    names = []

    def train(config, folder, console):
        names.append(folder.name)
        with workdir.locked(workdir.claim(folder, config)):
            made = a_result(0.9, seed=config.seed) | {'config': json.loads(config.to_json())}
            workdir.write_json(folder / 'result.json', made)
        return made

    monkeypatch.setattr(loop, 'train_and_evaluate', train)
    return names


@pytest.mark.slow
def test_a_sweep_goes_on_where_it_was_killed_and_is_reported(spec, tmp_path, monkeypatch):
    folder, names, train = tmp_path / 'sweep', [], loop.train_and_evaluate
    dies = True

    def counted(config, run, console):
        if dies and len(names) == 5:
            raise fixtures.Killed
        names.append(run.name)
        return train(config, run, console)

    monkeypatch.setattr(loop, 'train_and_evaluate', counted)
    with pytest.raises(fixtures.Killed):
        sweep.sweep(spec, folder, CONSOLE)
    dies = False
    sweep.sweep(spec, folder, CONSOLE)
    assert len(names) == len(set(names)) == len(list(folder.glob('*/result.json')))
    assert 4 + 2 * 2 <= len(names) <= 4 + 3 * 2  # DEF and DEF-A may keep different rates

    sweep.sweep(spec, folder, CONSOLE)
    assert len(names) == len(set(names))

    report.report(folder, tmp_path / 'report')
    page = (tmp_path / 'report' / 'README.md').read_text()
    assert page.startswith('# A table\n') and '## Learning rates' in page and '| 8 | ours |' in page
    report.report(tmp_path / 'report', tmp_path / 'report')  # from runs.jsonl alone
    assert (tmp_path / 'report' / 'README.md').read_text() == page
    assert (tmp_path / 'report' / 'curves.png').stat().st_size > 0
    assert not (tmp_path / 'report' / 'rows.png').exists()  # two rows make no line

    # Another table from the same runs, which takes along only its own.
    sgd = json.loads(spec.to_json()) | {'title': 'SGD', 'cells': [dict(spec.cells[0])]}
    report.report(folder, tmp_path / 'sgd', sgd)
    assert (tmp_path / 'sgd' / 'README.md').read_text().startswith('# SGD\n')
    kept = finished_runs.read(tmp_path / 'sgd')
    assert len(kept) == 2 + 2 and all(name.startswith('method=sgd') for name in kept)


def test_a_run_of_another_process_is_left_alone_until_it_is_done(spec, trained, tmp_path, monkeypatch):
    first, second = (f'method={m},learning_rate=0.1,seed=0' for m in ('sgd,ratio=1', 'def,ratio=8'))
    spec = small(spec, cells=spec.cells[:2])
    held, waits = sweep._held, []
    lock = held(workdir.claim(tmp_path / 'sweep', spec.base), first)
    lock.__enter__()

    def sleep(seconds):  # the other process dies while this one waits
        waits.append(seconds)
        lock.__exit__(None, None, None)

    monkeypatch.setattr(sweep.time, 'sleep', sleep)
    sweep.sweep(spec, tmp_path / 'sweep', CONSOLE)
    assert trained == [second, first] and len(waits) == 1

    def finished_meanwhile(root, name):  # by another process: it is not repeated
        run = sweep.configs(spec)[0]
        loop.train_and_evaluate(run, root / name, CONSOLE)
        return held(root, name)

    monkeypatch.setattr(sweep, '_held', finished_meanwhile)
    trained.clear()
    sweep.sweep(small(spec, cells=spec.cells[:1]), tmp_path / 'another', CONSOLE)
    assert trained == [first]


def test_a_diverged_run_is_a_result(spec, tmp_path):
    """Of the trainer itself."""
    spec = small(spec, cells=spec.cells[1:])  # of one run
    with fixtures.poisoned_batch(step=0, worker=1):
        sweep.sweep(spec, tmp_path / 'sweep', CONSOLE)
    assert len(list((tmp_path / 'sweep').glob('*/result.json'))) == 1
    report.report(tmp_path / 'sweep', tmp_path / 'sweep')
    assert '| 8 | ours | diverges | diverges |' in (tmp_path / 'sweep' / 'README.md').read_text()


def test_a_folder_of_another_sweep_is_refused_and_a_longer_one_goes_on(spec, trained, tmp_path):
    spec, folder = small(spec, cells=spec.cells[:1]), tmp_path / 'sweep'
    sweep.sweep(spec, folder, CONSOLE)
    spec.seeds = (0, 1)
    sweep.sweep(spec, folder, CONSOLE)
    assert [name[-1] for name in trained] == ['0', '1']
    for changes, words in (
        ({'batch_size': 20}, r'a run with another configuration \(batch_size: 40 there, 20'),
        # A table would mix them; a single run can go on with others, see test_regrouping.py.
        ({'num_workers': 2}, r'another configuration .num_workers: 4 there, 2 here'),
    ):
        other = spec.copy_and_resolve_references()
        other.base.update(changes)
        with pytest.raises(ValueError, match=words):
            sweep.sweep(other, folder, CONSOLE)
    run = sweep.configs(spec)[0].copy_and_resolve_references().unlock()
    run.method = 'ef'  # a run of another configuration lies in the folder
    (workdir.claim(folder, spec.base) / trained[0] / 'config.json').write_text(run.to_json())
    (folder / trained[0] / 'result.json').unlink()
    with pytest.raises(ValueError, match=r"a run with another configuration \(method: 'ef' there, 'sgd'"):
        sweep.sweep(spec, folder, CONSOLE)


def interrupted_run(config, run):
    raise loop.InterruptedRunError('SIGTERM', 7)


def finished_run(config, run):
    with interruption.watch():  # as the loop does, which finishes a run in its last step
        signal.raise_signal(signal.SIGTERM)
    return ''


@pytest.mark.parametrize(
    ('outcome', 'words'),
    [(interrupted_run, 'SIGTERM after step 7'), (finished_run, 'SIGTERM between two runs')],
)
def test_a_signal_ends_the_sweep_and_not_only_the_run_at_hand(spec, tmp_path, monkeypatch, outcome, words):
    started = []
    monkeypatch.setattr(sweep, '_outcome', lambda *of_run: started.append(of_run) or outcome(*of_run))
    with pytest.raises(EndedError, match=words) as error:
        sweep.sweep(spec, tmp_path / 'sweep', CONSOLE)
    assert len(started) == 1 and error.value.exit_code == 4


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (
            {'base': {'num_workers': 40, 'batch_size': 40, 'fake_devices': False}},
            r'40 devices are needed .* --config.base.workers_per_device',
        ),
        ({'seeds': ()}, r'config\.seeds, config\.cells and config\.tuning_seeds must'),
    ],
    ids=str,
)
def test_what_cannot_be_swept_is_refused_by_the_keys_of_a_sweep(spec, tmp_path, changes, message):
    spec = spec.unlock()
    spec.update(changes)
    with pytest.raises(ValueError, match=message):
        sweep.sweep(spec, tmp_path / 'sweep', CONSOLE)
    assert not (tmp_path / 'sweep').exists()


@pytest.mark.parametrize(
    ('gpus', 'processes', 'expected'),
    [('0123', 4, ['0', '1', '2', '3']), ('0123', 1, ['0,1,2,3']), ('01234', 2, ['0,1', '2,3']), ('', 2, [])],
)
def test_each_process_gets_gpus_of_its_own(monkeypatch, gpus, processes, expected):
    monkeypatch.setattr(devices, 'visible_gpus', lambda: list(gpus))
    shares = sweep.divided_gpus(processes)
    assert len(shares) == processes
    assert [share['CUDA_VISIBLE_DEVICES'] for share in shares if share] == expected
    if gpus:
        with pytest.raises(ValueError, match=rf'--processes=9 is more than the {len(gpus)} GPUs of this'):
            sweep.divided_gpus(9)
