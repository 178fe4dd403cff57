"""The files of configs/tables: every run of theirs is valid, and there are as many as the pages say."""

import collections
import importlib
import json

import pytest
from absl import flags

from configs.tables import table1, table4
from def_jax.trainer import workers
from paper import needed_runs, sweep

PLAIN = ('figure1', 'figure2', 'figure3', 'table2', 'table3', 'beyond')
VARIANTS = dict.fromkeys(PLAIN, ('digits',)) | {
    'table1': ('digits', 'digits_recalibrated'),
    'table4': ('digits', 'digits_tuned', 'tuned'),
    **dict.fromkeys(('detach', 'momentum'), ('digits', 'cifar10_small')),
    **dict.fromkeys(('league', 'levers'), ('cifar10_small',)),
    **{'orders': ('detach',), 'cifar10': ('long',), 'map': ('images', 'short')},
}


def get(file, arg=None):
    return importlib.import_module(f'configs.tables.{file}').get_config(arg)


@pytest.mark.parametrize(
    ('file', 'arg'), [(file, arg) for file in VARIANTS for arg in (None, *VARIANTS[file])]
)
def test_every_run_of_every_table_can_be_run(file, arg):
    spec = get(file, arg)
    assert spec.is_locked and not set(spec.seeds) & set(spec.tuning_seeds)
    assert spec.base.num_workers == 16 or (file, arg) == ('league', 'cifar10_small')
    assert len({(cell['row'], cell['column']) for cell in spec.cells}) == len(spec.cells)
    json.loads(spec.to_json())  # as sweep.json holds it
    with spec.unlocked():  # the runs of other seeds differ in nothing else
        spec.seeds, spec.tuning_seeds = spec.seeds[:1], spec.tuning_seeds[:1]
    sweep.check_spec(spec)
    if arg in (None, 'tuned') and file not in ('levers', 'orders', 'cifar10', 'map'):  # on GPUs
        for config in sweep.configs(spec):
            assert workers.num_devices(config) == 1
            assert config.workers_per_device == 1 or config.sequential_workers  # of ordinary convolutions


@pytest.mark.parametrize('file', VARIANTS)
def test_an_unknown_variant_is_refused(file):
    with pytest.raises(flags.IllegalFlagValueError, match="'digit' must be a variant: one of "):
        get(file, 'digit')


def test_the_papers_settings():
    base = table1.get_config().base
    settings = (base.model, base.dataset, base.batch_size, base.num_epochs, base.momentum, base.weight_decay)
    assert settings == ('vgg16', 'cifar10', 128, 200, 0.9, 5e-4)
    assert get('table2').base.num_epochs == 100 and get('table2').base.learning_rate_drops == (0.3, 0.6, 0.9)
    assert {cell['settings']['detach'] for cell in get('table4').cells} == set(table4.PAPER)


@pytest.mark.parametrize(
    ('file', 'args', 'tuning', 'fewest', 'most'),
    [
        ('table1', (), 48, 48, 78),
        ('table1', ('digits_recalibrated',), 249, 80, None),
        ('table2', (), 57, 19, 31),
        ('table3', (), 72, 72, 108),
        ('table4', (), 0, 18, 18),
        ('table4', ('tuned',), 18, 18, None),
        ('figure3', (), 0, 6, 6),
        ('beyond', (), 21, 35, 100),
        ('levers', (), 333, 140, None),
        ('levers', ('cifar10_small',), 128, 100, None),
        ('cifar10', (), 43, 27, None),
        ('cifar10', ('long',), 0, 4, None),
        ('map', (), 57, 75, None),
    ],
)
def test_the_number_of_runs_that_the_page_names(file, args, tuning, fewest, most):
    spec = get(file, *args)
    runs = {needed_runs.run_name(r): r for c in spec.cells for r in needed_runs.tuning_runs(spec, c)}
    assert len(runs) == tuning
    assert all(run['evaluate_on'] == 'validation' and run['validation_examples'] for run in runs.values())
    one_rate = {**spec, 'learning_rates': ()}
    sharing = collections.Counter(
        needed_runs.run_name(needed_runs.final_runs(one_rate, {**cell, 'tuned': {}}, {})[0])
        for cell in spec.cells
    )
    assert len(sharing) * len(spec.seeds) == fewest
    rates = len(spec.learning_rates) or 1
    if most:
        assert sum(min(cells, rates) for cells in sharing.values()) * len(spec.seeds) == most
    running = [cell for cell in spec.cells if needed_runs.cell_point(cell).endswith('_running')]
    if file == 'cifar10' or args == ('digits_recalibrated',):
        assert len(running) * 2 == len(spec.cells)


@pytest.mark.parametrize('count', [1, 3, 16])
def test_shards_divide_the_runs_of_a_table(count):
    spec = table1.get_config()
    shards = [needed_runs.shard(spec, f'{i}/{count}') for i in range(1, count + 1)]
    runs = [set(needed_runs.all_runs(part, {})) for part in shards]
    assert set.union(*runs) == set(needed_runs.all_runs(spec, {}))
    assert sum(map(len, runs)) == len(set.union(*runs))
    assert max(map(len, runs)) - min(map(len, runs)) <= len(spec.learning_rates)
    assert sorted(c['row'] + c['column'] for part in shards for c in part.cells) == sorted(
        cell['row'] + cell['column'] for cell in spec.cells
    )


@pytest.mark.parametrize('part', ['', '1', '0/2', '3/2', '1/0', '-1/2', '1/2/3', 'a/b', '1/17'])
def test_a_shard_that_cannot_be_is_refused(part):
    said = ': this table can be divided into at most 16 parts' if part == '1/17' else ' must be I/N with I '
    with pytest.raises(ValueError, match=f'--shard={part}{said}'):
        needed_runs.shard(table1.get_config(), part)
