"""Input that nobody gives on purpose: mutated command lines, odd trees, huge sizes."""

import functools
import pickle
import random
import shutil
import string
import subprocess
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console
import test_config_errors
import training_fixtures as fixtures
from configuration_values import ACCEPTED, REFUSED

import def_jax
from configs import digits
from def_jax.compressors import orders
from def_jax.compressors.blocks import Block
from def_jax.compressors.random_block import _draw_places
from def_jax.trainer import experiment, loop, steps
from def_jax.trainer.data import in_memory, streaming
from def_jax.trainer.tasks import check as task_check

NUM_MUTATED = 300


class Started(Exception):
    """A run got as far as its first array: it would train."""


@pytest.fixture
def starting(data_dir, monkeypatch):
    """Runs end, with Started, where everything has been checked; data sets are loaded once."""
    load_dataset, check_task = in_memory.load_dataset, task_check.check
    running = []

    @functools.cache
    def load(name):
        if name != 'digits':
            raise FileNotFoundError(f'Data set {name!r} is not there and could not be prepared.')
        return load_dataset('digits', data_dir)

    @functools.cache
    def of_model(model, dataset):
        del model, dataset
        return check_task(running[-1])

    def checked(run):
        running.append(run)
        return of_model(run.config.model, run.config.dataset)

    def start(run):
        raise Started

    monkeypatch.setattr(in_memory, 'load_dataset', lambda spec, data_dir: load(spec.name))
    monkeypatch.setattr(streaming, 'open_dataset', lambda spec, data_dir: load(spec.name))
    monkeypatch.setattr(task_check, 'check', checked)
    monkeypatch.setattr(steps, 'make_init', start)


def contents(folder):
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob('*')}


VALUES = [value for table in (REFUSED, ACCEPTED) for values in table.values() for value in values]
VALUES += [10**400, -(10**30), 2**31, 2**63, 1e308, 5e-324]
VALUES += ['x' * 1000, '\0', '../..', '/dev/null', [], {}, b'a']


def outcome(config, folder):
    """'would train', or the line that refuses."""
    try:
        loop.train_and_evaluate(config, folder, rich.console.Console(quiet=True))
    except Started:
        return 'would train'
    except (ValueError, OSError) as error:
        return ' '.join(str(error).split()) if isinstance(error, OSError) else str(error)


def mutated_line(chance, folder):
    """A command line with a few flags; of five lines three are damaged besides, and may not train."""
    line = ['train.py', '--config=configs/digits.py', f'--workdir={folder}', '--config.num_workers=4']
    settings = digits.get_config().to_dict()
    for _ in range(chance.randint(0, 3)):
        key = chance.choice(list(settings))
        line.append(f'--config.{key}={chance.choice([settings[key], *REFUSED[key], chance.choice(VALUES)])}')
    place = chance.randrange(1, len(line))
    text, kind = line[place], chance.random()
    if kind < 0.3:  # one character is another, missing, or too many
        at = chance.randrange(len(text))
        new = chance.choice(
            ['', chance.choice(string.printable), text[at] * 2, chance.choice('é\u202e\0;$`')]
        )
        line[place] = text[:at] + new + text[at + 1 :]
    elif kind < 0.45:
        del line[place]
    elif kind < 0.5:
        line[place] = text.split('=')[0]
    elif kind < 0.6:
        line.append(
            chance.choice(['--help=3', '--nothing', 'word', '--config=', '--config=README.md', '--', '-x'])
        )
    if chance.random() < 0.2:
        line[1] += chance.choice(
            [':ratio=4', ':ratio', ':method=def,method=ef', ':x=1', ':ratio=one', ':,', ':=']
        )
    return line


def test_mutated_command_lines_would_train_or_are_refused_in_one_line(
    starting, tmp_path, capsys, monkeypatch
):
    # Relative folders, when the flag is damaged, stay in here; so must everything that a line could execute.
    (tmp_path / 'configs').symlink_to(fixtures.Path(digits.__file__).parent)
    monkeypatch.chdir(tmp_path)
    chance, outcomes = random.Random(1), []
    for number in range(NUM_MUTATED):
        before = contents(tmp_path)
        argv = mutated_line(chance, tmp_path / 'runs' / str(number))
        try:
            config, folder, rest = test_config_errors.parse(*argv[1:])
            line = f'unexpected arguments {rest}' if rest else outcome(config, folder)
        except SystemExit as end:
            assert end.code == 2
            line = capsys.readouterr().err
            assert line.startswith('train.py: ') and line.count('\n') == 1, (argv, line)
        outcomes.append(line)
        if line != 'would train':
            assert contents(tmp_path) == before, (argv, line)
            assert '\n' not in line.rstrip('\n'), (argv, line)
        elif fixtures.Path(folder).name != 'runs':
            shutil.rmtree(folder)
    assert 'would train' in outcomes and len(set(outcomes)) > 1


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'num_epochs': 2**31}, r'config\.num_epochs=2147483648 or num_steps=0 gives .* steps'),
        ({'num_workers': 10**9, 'batch_size': 10**9}, '1000000000 fake devices .* more than this CPU'),
        ({'model': 'vgg16'}, r'images\.shape=.* multiples of 32'),
    ],
)
def test_what_only_shows_when_a_run_is_put_together_is_refused_before_its_folder_is_made(
    starting, tmp_path, changes, words
):
    config = fixtures.tiny_config('', **changes)
    with pytest.raises(ValueError, match=words):
        loop.train_and_evaluate(config, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


# --- Nothing in files is executed ---


def test_checkpoints_and_data_are_read_and_never_executed(data_dir, tmp_path, monkeypatch):
    """Not even by a library: no unpickling, no process, no import from the folders."""

    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / 'executed'), 'w'))

    def refuse(*args, **kwargs):
        raise AssertionError('something was executed')

    run = experiment.build(fixtures.tiny_config(data_dir))
    state = steps.make_init(run)()
    manager = fixtures.manager_of(tmp_path, run)
    manager.save(state)
    manager.close()
    for name in ('aggregate', 'state/_METADATA.pickle', 'state/extra.pkl'):
        (tmp_path / 'checkpoints' / '0' / name).write_bytes(pickle.dumps(Bomb()))
    (tmp_path / 'checkpoints' / '0' / 'sitecustomize.py').write_text('raise SystemExit')
    for module, name in ((pickle, 'load'), (pickle, 'loads'), (pickle, 'Unpickler'), (subprocess, 'Popen')):
        monkeypatch.setattr(module, name, refuse)
    fixtures.assert_same_bits(fixtures.shards(fixtures.restored(tmp_path, run)), fixtures.shards(state))
    in_memory.load_dataset('digits', data_dir)
    assert not (tmp_path / 'executed').exists()


# --- Step counts, and leaves past 2^31 elements: by abstract evaluation, and the starts themselves ---


@pytest.mark.parametrize('shape', [(7,), (4, 4)])
@pytest.mark.parametrize('kind', ['random_block', 'random_k'])
def test_nothing_is_lost_at_any_step_count(shape, kind):
    """What is sent and what is kept add up to what there was, bit for bit, and the next step is counted."""
    optimizer = def_jax.error_feedback(getattr(def_jax, kind)(3), None)
    update = jax.jit(optimizer.update)
    size = def_jax.message_size(getattr(def_jax, kind)(3), jax.ShapeDtypeStruct(shape, jnp.float32))
    updates = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    for step in (0, 2**31 - 1, 2**31, 2**32 - 1):
        sent, after = update(updates, optimizer.init(updates)._replace(step=jnp.uint32(step)))
        np.testing.assert_array_equal(sent + after.residual, updates)
        assert 0 < np.count_nonzero(sent) <= size
        assert int(after.step) == (step + 1) % 2**32


@pytest.mark.parametrize(
    'shape', [(2**31,), (2**16, 2**15), (2**16, 2**16), (3, 2**31), (2**32 - 64,), (2**11,) * 3, (64, 2**30)]
)
def test_blocks_of_leaves_past_2_31_elements(shape):
    leaf, compressor = jax.ShapeDtypeStruct(shape, jnp.bfloat16), def_jax.random_block(64)
    optimizer = def_jax.error_feedback(compressor, None)
    updates, state = jax.eval_shape(lambda x: optimizer.update(x, optimizer.init(x)), leaf)
    assert (updates.shape, updates.dtype, state.residual.shape) == (shape, jnp.bfloat16, shape)
    assert def_jax.message_size(compressor, leaf) == leaf.size // 64

    block, key = Block.of(shape, leaf.size // 64), jax.random.PRNGKey(0)

    def draw(place):
        with mock.patch.object(orders, 'draw_places', lambda *_: place[None]):
            return _draw_places('random', key, jnp.uint32(0), [block])[0][0]

    starts = np.asarray(jax.vmap(draw)(jnp.arange(64, dtype=jnp.uint32))).tolist()
    assert len({tuple(start) for start in starts}) == 64
    for start in starts:
        assert all(0 <= s <= n - b and s % b == 0 for s, n, b in zip(start, shape, block.shape, strict=True))


@pytest.mark.parametrize(
    ('shape', 'compressor', 'words'),
    [
        ((2**31 + 1,), def_jax.random_block(1e12), r'has 2147483649 blocks'),
        ((2**16, 2**16), def_jax.random_block(1e12), r'shape=\(65536, 65536\) has 4294967296 blocks'),
        ((2**33,), def_jax.random_block(64), r'an axis of 2\*\*32 or more'),
        ((2**16, 2**16), def_jax.random_block(64, granularity='model'), r"to 'tensor'"),
        ((2**31,), def_jax.random_k(64), '2147483648 blocks or elements'),
    ],
)
def test_what_32_bits_cannot_index_is_refused(shape, compressor, words):
    optimizer = def_jax.error_feedback(compressor, None)
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(
            lambda x: optimizer.update(x, optimizer.init(x)), jax.ShapeDtypeStruct(shape, jnp.bfloat16)
        )


@pytest.mark.parametrize('compressor', [def_jax.identity(), def_jax.scaled(0.5)])
def test_what_is_sent_whole_may_have_any_size(compressor):
    assert def_jax.message_size(compressor, jax.ShapeDtypeStruct((2**20, 2**15), jnp.bfloat16)) == 2**35
