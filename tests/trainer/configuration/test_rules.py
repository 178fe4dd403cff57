"""Configurations: what each key may hold, and messages that name the key and say what is allowed."""

import difflib
import importlib
import pkgutil
import re

import hypothesis
import ml_collections
import pytest
from configuration_values import ACCEPTED, REFUSED, USED_BY
from hypothesis import strategies as st

import configs
from configs import digits
from def_jax import METHODS
from def_jax.trainer.configuration.defaults import KEYS
from def_jax.trainer.configuration.rules import check_config


def changed(removed=(), **changes):
    """The digits configuration with some keys set, to values of any type, and some removed."""
    settings = digits.get_config().to_dict() | changes
    return ml_collections.ConfigDict({k: v for k, v in settings.items() if k not in removed})


def refusal(config):
    """The message of the ValueError that `config` must raise."""
    with pytest.raises(ValueError) as error:
        check_config(config)
    message = str(error.value)
    assert '\n' not in message
    return message


def cases(table):
    return [pytest.param(key, value, id=f'{key}={value!r}') for key in table for value in table[key]]


@pytest.mark.parametrize('name', [module.name for module in pkgutil.iter_modules(configs.__path__)])
def test_configuration_files_are_complete(name):
    file = importlib.import_module(f'configs.{name}')
    if name == 'claims' or not hasattr(file, 'get_config'):  # of a page; of a folder
        pytest.skip('not a configuration of a run')
    config = file.get_config()
    if 'method' not in config:
        pytest.skip('not the configuration of a run')
    check_config(config)
    assert set(config) == set(KEYS)
    assert config.is_locked
    config.seed = 5
    assert file.get_config().seed == 0  # every call makes a new one


def test_the_cases_cover_every_key():
    assert set(REFUSED) == set(ACCEPTED) == set(KEYS)


@pytest.mark.parametrize(('key', 'value'), cases(REFUSED))
def test_impossible_values_are_refused(key, value):
    message = refusal(changed(**USED_BY.get(key, {}) | {key: value}))
    allowed = f'{KEYS[key].allowed}.' if not KEYS[key].is_librarys else ''
    assert message.startswith(f'config.{key}={value!r} must be {allowed}')


@pytest.mark.parametrize(('key', 'value'), cases(ACCEPTED))
def test_possible_values_are_accepted(key, value):
    check_config(changed(**USED_BY.get(key, {}) | {key: value}))


def test_every_method_is_accepted():
    for name, method in METHODS.items():
        check_config(changed(method=name, num_workers=1 if method.single_worker else 16))


def test_an_integer_that_no_float_can_hold_is_no_crash():
    for key in ('ratio', 'learning_rate', 'weight_decay', 'momentum', 'detach'):
        assert f'config.{key}=' in refusal(changed(**{key: 10**400}))


@pytest.mark.parametrize('key', KEYS)
def test_missing_keys_are_named(key):
    message = refusal(changed(removed=[key]))
    assert message == f'config.{key} is missing; it must be {KEYS[key].allowed}.'


@pytest.mark.parametrize('key', KEYS)
def test_unknown_keys_suggest_the_nearest(key):
    misspelt = key[:-2] + key[:-3:-1]  # the last two letters changed places
    (near,) = difflib.get_close_matches(misspelt, KEYS, n=1)
    message = refusal(changed(**{misspelt: 1}))
    assert message == f'config.{misspelt} is not a known key. Did you mean {near!r}?'


def test_unknown_keys_that_are_like_no_other_suggest_nothing():
    assert refusal(changed(zzz=1)) == 'config.zzz is not a known key.'


@pytest.mark.parametrize(
    ('key', 'value', 'meant'),
    [('method', 'deff', 'def'), ('dataset', 'cifar', 'cifar10'), ('model', 'vgg61', 'vgg16')],
)
def test_misspelt_names_suggest_the_nearest(key, value, meant):
    assert refusal(changed(**{key: value})).endswith(f'Did you mean {meant!r}?')


@pytest.mark.parametrize(('key', 'value'), cases(REFUSED))
def test_a_suggestion_can_be_followed(key, value):
    suggestion = re.search(r"Did you mean '(.*)'\?", refusal(changed(**{key: value})))
    if suggestion:
        check_config(changed(**{key: suggestion[1]}))


@pytest.mark.parametrize(
    ('batch_size', 'num_workers', 'nearest'), [(100, 16, 96), (7, 4, 8), (1, 16, 16), (127, 128, 128)]
)
def test_a_batch_that_does_not_divide_suggests_one_that_does(batch_size, num_workers, nearest):
    message = refusal(changed(batch_size=batch_size, num_workers=num_workers))
    assert f'config.batch_size={batch_size}' in message and f'num_workers={num_workers}' in message
    assert message.endswith(f'the nearest is {nearest}.')
    check_config(changed(batch_size=nearest, num_workers=num_workers))


@pytest.mark.parametrize('workers_per_device', [3, 5, 32])
def test_workers_must_share_devices_evenly(workers_per_device):
    message = refusal(changed(workers_per_device=workers_per_device))
    assert f'config.workers_per_device={workers_per_device} does not divide config.num_workers=16' in message


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'workers_per_device': 2}, 'config.workers_per_device=2. Set --config.workers_per_device=1'),
        ({'method': 'powersgd'}, "config.method='powersgd' compresses whole ones"),
        ({'method': 'cser'}, "config.method='cser' compresses whole ones"),
        ({'batch_size': 48}, 'must divide the 3 examples of which a worker takes a gradient'),
        ({'accumulate': 8}, 'must divide the 1 examples'),
    ],
    ids=str,
)
def test_workers_of_several_devices_refuse_what_they_cannot_run(changes, words):
    message = refusal(changed(shards_per_worker=2, **changes))
    assert message.startswith('config.shards_per_worker=2 ') and words in message
    check_config(changed(shards_per_worker=2))


@pytest.mark.parametrize('granularity', ['model', 'element'])
def test_only_blocks_of_tensors_are_allocated(granularity):
    message = refusal(changed(granularity=granularity, allocation='balanced'))
    assert "config.allocation='balanced'" in message and f'granularity={granularity!r}' in message


@pytest.mark.parametrize('order', ['shuffled', 'cyclic'])
def test_single_elements_have_no_order(order):
    message = refusal(changed(granularity='element', order=order))
    assert f'config.order={order!r}' in message and "granularity='element'" in message
    check_config(changed(granularity='model', order=order))


@pytest.mark.parametrize('method', ['sgd', 'ef21'])
@pytest.mark.parametrize(('key', 'value'), [('wire_dtype', 'bfloat16'), ('skip_nonfinite', True)])
def test_options_of_error_feedback_need_it(method, key, value):
    message = refusal(changed(**{'method': method, key: value}))
    assert f'config.{key}={value!r}' in message and METHODS[method].title in message
    check_config(changed(**{'method': 'ef', key: value}))


@pytest.mark.parametrize('method', [name for name in METHODS if name not in ('def', 'def_a', 'sgd_ia')])
def test_only_a_free_detach_can_be_automatic(method):
    message = refusal(changed(method=method, detach='auto'))
    assert "config.detach='auto'" in message and METHODS[method].title in message
    check_config(changed(method='def_a', detach='auto'))


def test_an_automatic_detach_needs_the_range_of_float32():
    message = refusal(changed(wire_dtype='float16', detach='auto'))
    assert "config.wire_dtype='float16'" in message and "detach='auto'" in message
    check_config(changed(wire_dtype='bfloat16', detach='auto'))


def test_a_key_of_an_earlier_version_says_where_it_went():
    message = refusal(changed(auto_detach=True))
    assert (
        message
        == 'config.auto_detach is not a known key. It is a value of another key now: --config.detach=auto.'
    )


def test_options_of_an_outer_optimizer_need_one():
    assert refusal(changed(outer_options={'nosuch': 1})) == (
        "config.outer_options={'nosuch': 1} has no effect without outer."
    )


def test_int8_adds_the_integers_of_at_most_127_workers():
    message = refusal(changed(wire_dtype='int8', num_workers=128, batch_size=128))
    assert message.startswith("config.wire_dtype='int8' adds") and '128 workers' in message


def test_a_method_for_one_worker_refuses_several():
    message = refusal(changed(method='sgd_ia'))
    assert "config.method='sgd_ia'" in message and 'config.num_workers=16' in message


def test_diagnostics_of_how_workers_differ_need_two():
    assert 'config.diagnostics_every=5' in refusal(changed(diagnostics_every=5, num_workers=1))
    check_config(changed(diagnostics_every=5, num_workers=2))


VALUES = st.one_of(
    st.sampled_from(
        [value for table in (REFUSED, ACCEPTED) for values in table.values() for value in values]
    ),
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.binary(max_size=4),
    st.lists(st.floats() | st.integers(0, 2) | st.text(max_size=2), max_size=3),
)
NAMES = st.sampled_from(list(KEYS)) | st.text('abcdefghijklmnopqrstuvwxyz_', min_size=1, max_size=8)


@hypothesis.settings(
    max_examples=50,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],  # on a busy machine
)
@hypothesis.given(
    changes=st.dictionaries(NAMES, VALUES, max_size=3),
    removed=st.sets(st.sampled_from(list(KEYS)), max_size=1),
)
def test_any_configuration_is_accepted_or_refused_in_one_line(changes, removed):
    try:
        check_config(changed(removed, **changes))
    except ValueError as error:
        message = str(error)
        assert '\n' not in message
        assert message.startswith('config.')
        assert set(re.findall(r'config\.(\w+)', message)) & {*changes, *removed}
    else:
        assert not removed - changes.keys() and changes.keys() <= KEYS.keys()
