"""What stands behind the colon of --config=FILE:key=value: parsing, errors, keys that decide about others."""

import ml_collections
import pytest
from absl import flags

from configs import cifar10, cifar100, digits
from def_jax.trainer.configuration import arguments
from def_jax.trainer.configuration.defaults import KEYS
from def_jax.trainer.configuration.rules import check_config

CONFIG = ml_collections.ConfigDict(
    {'method': 'def', 'ratio': 64, 'detach': 0.3, 'fake_devices': True, 'data_dir': '', 'drops': (0.5, 0.75)}
)


def test_settings_have_the_type_of_the_key():
    assert arguments.parse(None, CONFIG) == arguments.parse('', CONFIG) == {}
    parsed = arguments.parse('ratio=256,method=ef,detach=1,fake_devices=False,data_dir=/a=b', CONFIG)
    settings = {'ratio': 256, 'method': 'ef', 'detach': 1.0, 'fake_devices': False, 'data_dir': '/a=b'}
    assert parsed == settings and {key: type(value) for key, value in parsed.items()} == {
        key: type(CONFIG[key]) for key in settings
    }


@pytest.mark.parametrize(
    ('arg', 'message'),
    [
        ('metod=ef', "'metod' in 'metod=ef' is not a known key. Did you mean 'method'"),
        ('ratio=4,', "'' in 'ratio=4,' must have the form key=value"),
        ('ratio=4,ratio=8', "'ratio=8' in .* must have the form key=value, once"),
        ('ratio=4.5', "ratio='4.5' must be of type int"),
        ('fake_devices=1', "fake_devices='1' must be of type bool"),
        ('drops=0.5', "'drops' is a tuple .*; use --config.drops=VALUE"),
    ],
)
def test_errors(arg, message):
    with pytest.raises(flags.IllegalFlagValueError, match=message):
        arguments.parse(arg, CONFIG)


@pytest.mark.parametrize('file', [digits, cifar10, cifar100])
def test_every_file_takes_settings(file):
    plain, changed = file.get_config(), file.get_config('model=resnet110,ratio=256,dataset=digits')
    check_config(changed)
    assert changed.is_locked
    differences = {key for key in KEYS if plain[key] != changed[key]}
    assert differences == {'model', 'ratio', 'dataset'} - ({'dataset'} if file is digits else set())
    assert (changed.model, changed.ratio, changed.dataset) == ('resnet110', 256, 'digits')


@pytest.mark.parametrize('file', [cifar10, cifar100])
def test_ef_has_its_own_learning_rate(file):
    rates = [
        file.get_config(arg).learning_rate
        for arg in (None, 'method=saef', 'method=ef', 'method=ef,learning_rate=0.2', 'learning_rate=0.2')
    ]
    assert rates == [0.05, 0.05, 0.01, 0.2, 0.2]
    first, second = cifar10.get_config('ratio=16'), cifar100.get_config('ratio=16')
    assert {key for key in KEYS if first[key] != second[key]} == {'dataset'}
