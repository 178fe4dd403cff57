"""The code that newcomers copy: README's program, the how-to's steps and the example run as they stand."""

import itertools
import re
import runpy
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from configs.digits import get_config
from def_jax import METHODS
from def_jax.trainer import experiment
from def_jax.trainer.configuration.rules import check_config
from def_jax.trainer.data import order

ROOT = Path(__file__).parents[2]
FRONT = ('README.md', 'docs/index.md')


def names_of(page):
    """The names that the page's Python blocks define, run in order."""
    names = {}
    for block in re.findall(r'```python\n(.*?)```', (ROOT / page).read_text(), re.DOTALL):
        exec(block, names)
    return names


@pytest.mark.slow
def test_the_program_of_readme_shows_what_it_says(capsys):
    """At one rate, error feedback diverges and DEF ends where dense training does."""
    names_of('README.md')
    printed = capsys.readouterr().out.splitlines()
    dense, without, detached = (float(line.rpartition(' ')[2]) for line in printed)
    assert detached < 1.2 * dense < 0.1
    assert not without < 1


def test_the_landing_page_has_the_program_of_readme():
    programs = [re.findall(r'```python\n(.*?)```', (ROOT / page).read_text(), re.DOTALL) for page in FRONT]
    assert programs[0] == programs[1] and len(programs[0]) == 1


def test_pmapped_and_sharded_step_of_the_how_to_train_and_agree():
    page = names_of('docs/how_to/own_loop.md')
    start, optimizer, flat_batch = page['start'], page['optimizer'], page['flat_batch']
    pmapped, opt_state = jax.pmap(lambda _: (start, optimizer.init(start)))(np.arange(jax.device_count()))
    sharded, sharded_state = start, page['stacked']
    for _ in range(5):
        pmapped, opt_state = page['train_step'](pmapped, opt_state, page['batch'])
        sharded, sharded_state = page['sharded_step'](sharded, sharded_state, flat_batch)
        jax.block_until_ready((pmapped, sharded))
    y = page['final'](pmapped, opt_state)
    x, y = jax.tree.map(lambda leaf: np.asarray(leaf)[0], (pmapped, y))
    np.testing.assert_allclose(x['w'], sharded['w'], rtol=1e-5, atol=1e-7)
    assert page['loss_fn'](y, flat_batch) < page['loss_fn'](start, flat_batch)


@pytest.mark.slow
def test_example_learns():
    example = runpy.run_path(str(ROOT / 'examples' / 'mlp.py'))
    assert jax.device_count() >= example['NUM_WORKERS']
    assert example['main'](num_steps=300) > 0.9


@pytest.mark.slow
def test_example_of_sharded_nodes_learns():
    example = runpy.run_path(str(ROOT / 'examples' / 'fsdp.py'))
    assert example['main'](num_steps=150) < 3.0  # nats a byte; a uniform guess has 5.5


def table(file, start):
    """The rows of the first table whose heading starts so, by column, without bold."""
    lines = itertools.dropwhile(lambda line: not line.startswith(start), file.read_text().splitlines())
    heading, _, *rows = [
        [text.strip(' *') for text in line.split('|')[1:-1]]
        for line in itertools.takewhile(lambda line: line.startswith('|'), lines)
    ]
    for above, row in itertools.pairwise(rows):
        row[0] = row[0] or above[0]
    return [dict(zip(heading, row, strict=True)) for row in rows]


def allows(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except ValueError:
        return 'no'
    return 'yes'


@pytest.mark.parametrize('name', ['def', 'powersgd', 'diloco', 'top_k'])
def test_what_readme_says_of_the_methods_is_what_they_allow(name):
    method = METHODS[name]
    said = {row['here']: row[method.title] for row in table(ROOT / 'README.md', '| here |')}
    config = get_config(f'method={name},num_workers=2')
    with config.unlocked():
        config.shards_per_worker = 2
    assert said['a worker shards its model (FSDP)'] == allows(check_config, config)
    compressor = method.compressor(1)
    arguments = (optax.identity(), optax.sgd(0.1), 'workers', compressor)
    assert said['messages in int8'] == allows(method.optimizer, *arguments, bits=8)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['powersgd', 'diloco', 'top_k'])
def test_what_readme_says_of_restarts(data_dir, tmp_path, name):
    """Bit for bit with as many workers; with half of them, the checkpoint is restored."""
    import training_fixtures as fixtures  # imports TensorFlow

    changes = {'method': name} | ({'every': 2, 'ratio': 1.0} if name == 'diloco' else {})
    config = fixtures.tiny_config(data_dir, **changes)
    fixtures.train(config, tmp_path / 'whole')
    with fixtures.killed(order, 'train_batch', when=13):
        fixtures.train(config, tmp_path / 'killed')
    fixtures.train(config, tmp_path / 'killed')
    run = experiment.build(config)
    whole, resumed = (fixtures.restored(tmp_path / folder, run) for folder in ('whole', 'killed'))
    fixtures.assert_same_bits(whole, resumed)
    half = fixtures.tiny_config(data_dir, num_workers=config.num_workers // 2, **changes)
    assert int(fixtures.restored(tmp_path / 'killed', experiment.build(half)).step) == int(whole.step)


def test_readme_is_short():
    assert len((ROOT / 'README.md').read_bytes()) <= 5000
