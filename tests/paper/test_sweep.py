"""The sweep: all runs of a table, none of them twice, whatever happened before."""

import io
import json
import signal

import pytest
import rich.console
import training_fixtures as fixtures
from test_report import result as a_result

from configs.tables import tables as table_files
from def_jax.trainer import loop
from def_jax.trainer.checkpointing import workdir
from def_jax.trainer.launch import interruption
from paper import finished_runs, report, sweep

CONSOLE = rich.console.Console(quiet=True)


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
            made = a_result(config.seed, 0.9) | {'config': json.loads(config.to_json())}
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

    monkeypatch.setattr(sweep.jax, 'clear_caches', lambda: None)  # programs stay compiled
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

    # A result that was cut in half: the report names it, the sweep mends it without training.
    cut = folder / names[0] / 'result.json'
    whole = cut.read_text()
    cut.write_text(whole[:100])
    with pytest.raises(ValueError, match=r'result.json is incomplete. Delete it and restart its run'):
        report.report(folder, tmp_path / 'again')
    sweep.sweep(spec, folder, CONSOLE)
    assert json.loads(cut.read_text())['metrics'] == json.loads(whole)['metrics']


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
    spec = small(spec)
    spec.base.learning_rate, spec.base.weight_decay = 1e30, 1.0
    sweep.sweep(spec, tmp_path / 'sweep', CONSOLE)
    assert len(list((tmp_path / 'sweep').glob('*/result.json'))) == 2
    report.report(tmp_path / 'sweep', tmp_path / 'sweep')
    assert '| 8 | ours |  | diverges | diverges |' in (tmp_path / 'sweep' / 'README.md').read_text()


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


def test_a_signal_ends_the_sweep_and_not_only_the_run_at_hand(spec, trained, tmp_path, monkeypatch):
    def interrupted(config, run, console):
        trained.append(run.name)
        raise loop.InterruptedRunError('SIGTERM', 7)

    monkeypatch.setattr(loop, 'train_and_evaluate', interrupted)
    with pytest.raises(loop.InterruptedRunError) as error:
        sweep.sweep(spec, tmp_path / 'sweep', CONSOLE)
    assert len(trained) == 1 and error.value.exit_code == 4


def test_a_signal_after_the_last_step_of_a_run_ends_the_sweep(spec, trained, tmp_path, monkeypatch):
    def outcome(config, run):
        trained.append(run.name)
        with interruption.watch():  # as the loop does, which finishes a run in its last step
            signal.raise_signal(signal.SIGTERM)
        return ''

    monkeypatch.setattr(sweep, '_outcome', outcome)
    with pytest.raises(interruption.InterruptedSweepError, match='SIGTERM between two runs') as error:
        sweep.sweep(spec, tmp_path / 'sweep', CONSOLE)
    assert len(trained) == 1 and error.value.exit_code == 4


def test_what_is_tuned_needs_learning_rates(spec, tmp_path):
    spec = spec.unlock()
    spec.learning_rates, spec.cells[1]['tuned'] = (), {'detach': (0.1, 0.3)}
    with pytest.raises(ValueError, match=r"tuned settings need learning rates .* 'learning_rate' in tuned"):
        sweep.sweep(spec, tmp_path / 'sweep', CONSOLE)


def test_too_few_devices_are_noticed_before_a_folder_is_claimed(spec, tmp_path):
    """And the remedy names a flag that a sweep has."""
    spec.base.num_workers, spec.base.batch_size, spec.base.fake_devices = 40, 40, False
    with pytest.raises(ValueError, match=r'40 devices are needed .* --config.base.workers_per_device'):
        sweep.sweep(spec, tmp_path / 'sweep', CONSOLE)
    assert not (tmp_path / 'sweep').exists()


@pytest.mark.parametrize(('gpus', 'said'), [(7, ''), (8, '4 of 8 GPUs are used; --processes')])
def test_gpus_that_stay_idle_are_mentioned(spec, tmp_path, monkeypatch, gpus, said):
    monkeypatch.setattr(sweep.jax, 'default_backend', lambda: 'gpu')
    monkeypatch.setattr(sweep.jax, 'local_device_count', lambda: gpus)
    monkeypatch.setattr(sweep, 'missing_runs', lambda spec, done: {})
    console = rich.console.Console(file=io.StringIO(), width=200)
    sweep.sweep(spec, tmp_path / 'sweep', console)
    assert console.file.getvalue().startswith(said) and bool(said) == ('GPUs' in console.file.getvalue())


def test_remedies_name_keys_that_a_sweep_has(spec, tmp_path):
    spec.base.workers_per_device = 3
    with pytest.raises(ValueError, match=r'config\.base\.workers_per_device=3 .*config\.base\.num_workers=4'):
        sweep.sweep(spec, tmp_path / 'sweep', CONSOLE)
    with spec.unlocked():
        spec.base.workers_per_device, spec.seeds = 1, ()
    with pytest.raises(ValueError, match=r'config\.seeds, config\.cells and config\.tuning_seeds must'):
        sweep.sweep(spec, tmp_path / 'sweep', CONSOLE)
