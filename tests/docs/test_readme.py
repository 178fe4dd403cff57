"""What newcomers read and copy: README's diffs and numbers, the program of First steps, the examples."""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import test_pages

import def_jax
from configs.digits import get_config
from def_jax.baselines import METHODS
from def_jax.trainer import experiment
from def_jax.trainer.configuration.rules import check_config
from def_jax.trainer.data import order

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_program_of_first_steps_shows_what_it_says(capsys):
    """At one rate, error feedback diverges and DEF ends where dense training does."""
    test_pages.test_code_runs(ROOT / 'docs/first_steps.md')
    printed = capsys.readouterr().out.splitlines()
    dense, without, detached = (float(line.rpartition(' ')[2]) for line in printed)
    assert detached < 1.2 * dense < 0.1
    assert not without < 1


def loss_fn(params, batch):
    return jnp.mean((batch @ params['w'] - 1) ** 2)


@pytest.mark.parametrize('pmapped', [True, False])
def test_the_diffs_of_readme_turn_a_dense_step_into_one_that_sends_little(pmapped):
    """On two nodes; of four devices here, and eight there."""
    diff = re.findall(r'```diff\n(.*?)```', (ROOT / 'README.md').read_text(), re.DOTALL)[pmapped]
    after = '\n'.join(line[1:] for line in diff.splitlines() if not line.startswith('-'))
    after = after.replace('make_mesh((2, 8)', 'make_mesh((2, 4)').replace('inside=8', 'inside=4')
    names = {
        'lr': 0.01,
        'decay': 1e-4,
        'specs': jax.P('gpus'),
        'loss_fn': loss_fn,
        'jax': jax,
        'optax': optax,
        'functools': functools,
        'def_jax': def_jax,
    }
    exec(after, names)
    optimizer, devices = names['optimizer'], jax.device_count()
    params, batch = {'w': jnp.ones(16)}, jnp.ones((devices, 4, 16))
    if pmapped:
        params, opt_state = jax.pmap(lambda _: (params, optimizer.init(params)))(np.arange(devices))
    else:
        params = jax.device_put(params, optimizer.shardings)
        opt_state, batch = optimizer.init(params), batch.reshape(-1, 16)
    compiled = names['train_step'].lower(params, opt_state, batch).compile()
    if pmapped:
        def_jax.check(compiled, optimizer, {'w': jnp.ones(16)}, 'gpus', devices_per_node=4)
    else:
        optimizer.check(compiled, devices_per_node=4)


def allows(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except ValueError:
        return 'no'
    return 'yes'


@pytest.mark.parametrize('name', ['def', 'powersgd', 'diloco', 'top_k'])
def test_what_the_page_of_methods_says_is_what_they_allow(name):
    method = METHODS[name]
    _, heading, table = (ROOT / 'docs/methods.md').read_text().partition('| in this library |')
    lines = [line for line in (heading + table).splitlines() if line.startswith('|')]
    titles, _, *rows = ([cell.strip() for cell in line.split('|')[1:-1]] for line in lines)
    said = {row[0]: row[titles.index(method.title)] for row in rows}
    config = get_config(f'method={name},num_workers=2')
    with config.unlocked():
        config.shards_per_worker = 2
    assert said['a worker shards its model (FSDP)'] == allows(check_config, config)
    compressor = method.compressor(1)
    arguments = (optax.identity(), optax.sgd(0.1), 'workers', compressor)
    assert said['messages in few bits'] == allows(method.optimizer, *arguments, bits=2)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['powersgd', 'diloco', 'top_k'])
def test_rivals_resume_from_their_checkpoints(data_dir, tmp_path, name):
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
