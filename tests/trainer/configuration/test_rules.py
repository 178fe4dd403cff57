"""Configurations: what each key may hold, and messages that name the key and say what is allowed."""

import difflib
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
from configuration_values import ACCEPTED, REFUSED, USED_BY, changed

import configs
from configs import cifar10, cifar100, language
from def_jax.baselines import METHODS
from def_jax.trainer import experiment
from def_jax.trainer.configuration import parts
from def_jax.trainer.configuration.defaults import KEYS
from def_jax.trainer.configuration.rules import check_config


def refusal(config):
    """The message of the ValueError that `config` must raise."""
    with pytest.raises(ValueError) as error:
        check_config(config)
    message = str(error.value)
    assert '\n' not in message
    return message


@pytest.mark.parametrize('name', [module.name for module in pkgutil.iter_modules(configs.__path__)])
def test_configuration_files_are_complete_and_take_settings(name):
    file = importlib.import_module(f'configs.{name}')
    plain, some = (
        file.get_config(),
        file.get_config('ratio=256,seed=5,patience=7'),
    )  # every call makes a new one
    check_config(some)
    differences = {key: some[key] for key in KEYS if plain[key] != some[key]}
    assert set(plain) == set(KEYS) and differences == {'ratio': 256.0, 'seed': 5, 'patience': 7}


@pytest.mark.parametrize('name', ['language', 'two_nodes'])
def test_configurations_of_text_ask_for_no_more_than_the_standard_library_has(name):
    config = importlib.import_module(f'configs.{name}').get_config()
    assert len(parts.make_dataset(config).test) >= config.test_examples


def test_longer_sequences_need_no_more_than_the_header_of_the_configuration_says():
    (flags,) = re.findall(r'--config.dataset_options.context=.*', language.__doc__)
    config = language.get_config(','.join(re.findall(r'--config\.(\S+)', flags)))
    experiment.build(config)


def test_impossible_values_of_every_key_are_refused_with_what_is_allowed():
    assert set(REFUSED) == set(KEYS)
    for key, value in [(name, value) for name in KEYS for value in REFUSED[name]]:
        message = refusal(changed(**USED_BY.get(key, {}) | {key: value}))
        assert message.startswith(f'config.{key}={value!r} must be ')
        if suggestion := re.search(r"Did you mean '(.*)'\?", message):  # which can be followed
            check_config(changed(**{key: suggestion[1]}))


def test_possible_values_and_every_method_are_accepted():
    for key, values in ACCEPTED.items():
        for value in values:
            check_config(changed(**USED_BY.get(key, {}) | {key: value}))
    for name, method in METHODS.items():
        check_config(changed(method=name, num_workers=1 if method.single_worker else 16))


def test_missing_and_unknown_keys_are_named_with_what_is_allowed_or_near():
    for key in KEYS:
        missing = f'config.{key} is missing; its default is {KEYS[key].default!r}.'
        assert refusal(changed(removed=[key])) == missing
        misspelt = key[:-2] + key[:-3:-1]  # the last two letters changed places
        (near,) = difflib.get_close_matches(misspelt, KEYS, n=1)
        message = refusal(changed(**{misspelt: 1}))
        assert message == f'config.{misspelt} is not a known key. Did you mean {near!r}?'
    assert refusal(changed(zzz=1)) == 'config.zzz is not a known key.'
    assert refusal(changed(wire_dtype='int8')).endswith('Write bits: 8 for int8, 16 for bfloat16.')


SHARDS, NARROW = {'shards_per_worker': 2}, {'bits': 16}
SKIPS, ELASTIC = {'skip_nonfinite': True}, {'elastic': True, 'workers_per_device': 1}
CONFLICTS = [  # what is set, what is said, what may be set instead
    ({'batch_size': 100}, 'must be a multiple of num_workers=16, e.g. 96.', {'batch_size': 96}),
    ({'batch_size': 1}, 'must be a multiple of num_workers=16, e.g. 16.', {'batch_size': 16}),
    ({'workers_per_device': 3}, 'workers_per_device=3 must divide config.num_workers=16', {}),
    (SHARDS | {'workers_per_device': 2}, 'config.workers_per_device=2. Set it to 1', SHARDS),
    (SHARDS | {'method': 'powersgd'}, "config.method='powersgd' compresses whole tensors", SHARDS),
    (SHARDS | {'batch_size': 48}, 'divide the 3 examples of which a worker takes a gradient', SHARDS),
    ({'accumulate': 3}, 'must divide the 8 examples of a worker, batch_size / num_workers', {}),
    (NARROW | {'method': 'sgd'}, 'since SGD does not use it', NARROW),
    (SKIPS | {'method': 'sgd'}, 'since SGD does not use it', SKIPS),
    ({'method': 'sgd_ia'}, 'config.num_workers=16', {'method': 'sgd_ia', 'num_workers': 1}),
    ({'diagnostics_every': 5, 'num_workers': 1}, 'diagnostics_every=5', {'diagnostics_every': 5}),
    (ELASTIC | {'diagnostics_every': 5}, 'config.elastic=True has no diagnostics_every', ELASTIC),
    (ELASTIC | SKIPS, 'config.elastic=True has no skip_nonfinite', SKIPS),
    (ELASTIC | {'workers_per_device': 2}, 'config.elastic=True needs whole devices', {}),
    (ELASTIC | {'method': 'cser'}, "config.method='cser' gives each worker its own", {}),
    (ELASTIC | {'method': 'ef21'}, "config.method='ef21' keeps the share of a dead one", {}),
    (ELASTIC | {'min_workers': 17}, 'must be at most num_workers=16', ELASTIC | {'min_workers': 16}),
    ({'dataset_options': {'path': Path()}}, 'must be a dict of its arguments: numbers', {}),
    ({'method': 'def_q', 'ratio': 8}, 'config.ratio=8 with bits=2', {'method': 'def_q'}),
    ({'method': 'def_q', 'order': 'cyclic'}, "DEF-Q fixes 'shuffled'. Leave it out", {}),
    ({'method': 'def_q', 'optimizer': 'adamw', 'decay': 0.9}, "effect on method='def_q'", {}),
    ({'outer': 'sgd', 'method': 'top_k'}, "has no effect on config.method='top_k'", {'method': 'diloco'}),
    ({'outer_options': {'nosuch': 1}}, "outer_options={'nosuch': 1} has no effect on outer=''", {}),
    ({'average_every': 5}, "average_every=5 has no effect on config.method='def'", {'method': 'saef'}),
    ({'method_options': {'a': 1}}, "method_options={'a': 1} has no effect on method='def'", {}),
]


def test_keys_that_do_not_fit_each_other_are_refused_with_a_remedy():
    auto = [
        (
            {'method': name, 'detach': detach, 'num_workers': 1},
            f"config.detach={detach!r} has no effect on config.method='{name}', which fixes it or has none",
            {'method': name, 'detach': method.detach, 'num_workers': 1},
        )
        for name, method in METHODS.items()
        for detach in ('auto', 0.7)
        if 'detach' not in method.options
    ]
    for changes, words, remedy in CONFLICTS + auto:
        assert words in (found := refusal(changed(**changes))), found
        check_config(changed(**remedy))


@pytest.mark.parametrize('file', [cifar10, cifar100])
def test_ef_has_its_own_learning_rate(file):
    rates = [
        file.get_config(arg).learning_rate
        for arg in (None, 'method=saef', 'method=ef', 'method=ef,learning_rate=0.2', 'learning_rate=0.2')
    ]
    assert rates == [0.05, 0.05, 0.01, 0.2, 0.2]
