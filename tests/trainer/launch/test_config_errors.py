"""A configuration file may contain anything: what is wrong with it is said in one line, with its place."""

import random
import string
import sys
from unittest import mock

import pytest
from absl import flags
from configuration_values import ACCEPTED, REFUSED
from ml_collections import config_flags

from configs import digits
from def_jax.trainer.configuration.rules import check_config
from def_jax.trainer.launch import command_line

DIGITS = ('--workdir=run', f'--config={digits.__file__}')
CONFIG = """
import ml_collections

def get_config(arg=None):
    config = ml_collections.ConfigDict({'ratio': 64.0, 'name': 'a'})
    BODY
    return config.lock()
"""


def parse(*argv):
    """The configuration that `train.py` makes of a command line."""
    argv, values = ['train.py', *argv], flags.FlagValues()
    config = config_flags.DEFINE_config_file(
        'config', None, '', flag_values=values, lock_config=False, accept_new_attributes=True
    )
    flags.DEFINE_string('workdir', None, '', flag_values=values)
    flags.mark_flags_as_required(['config', 'workdir'], flag_values=values)
    with mock.patch.object(flags, 'FLAGS', values), mock.patch.object(sys, 'argv', argv):
        command_line.config_flags_parser('train.py', config)(argv)
        return config.value


def refusal(capsys, *argv):
    """The one line with which a command line is refused."""
    with pytest.raises(SystemExit) as end:
        parse(*argv)
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.startswith('train.py: ') and error.count('\n') == 1, error
    return error


@pytest.mark.parametrize(
    ('content', 'line'),
    [
        ('1 / 0', 'file.py:6: ZeroDivisionError: division by zero'),
        ('config.ratoi += 1', 'file.py:6: AttributeError: \'ratoi\' Did you mean "ratio"'),
        ('return 3', 'get_config() in --config returned int, not a ConfigDict'),
        ('return None', 'flag --config=None: Flag --config must have a value other than None'),
        (b'# def_jax\n\nTrains with **one** line.\n', 'file.py:3: SyntaxError: invalid syntax'),
        (b'\0\0\0', 'null bytes'),
        (b'', "has no attribute 'get_config'"),
    ],
)
def test_what_is_no_configuration_is_refused_with_its_place(tmp_path, monkeypatch, capsys, content, line):
    """A file's bytes, or what stands in its get_config()."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, 'config_config', None)  # so that the next line is undone, too
    monkeypatch.delitem(sys.modules, 'config_config')  # or config_flags adds to what it has loaded before
    content = content if isinstance(content, bytes) else CONFIG.replace('BODY', content).encode()
    (tmp_path / 'file.py').write_bytes(content)
    assert line in refusal(capsys, '--workdir=run', '--config=file.py')


@pytest.mark.parametrize(
    ('flag', 'line'),
    [
        ('--config.ratio=abc', '--config.ratio=abc must be a number ('),
        ('--config.ratio', 'config.ratio'),
        ('--confg.ratio=8', 'confg.ratio'),
        ('--config.=3', 'in a flag --config.KEY=VALUE: that is not a known key'),
    ],
)
def test_a_flag_is_named_with_what_is_allowed(capsys, flag, line):
    error = refusal(capsys, *DIGITS, flag)
    assert line in error and len(error) < 250  # without a list of all keys


@pytest.mark.parametrize(
    ('setting', 'key', 'value'),
    [
        ('optimizer_options.b2=0.95', 'optimizer_options', {'b2': 0.95}),
        ('optimizer_options.mu_dtype=bfloat16', 'optimizer_options', {'mu_dtype': 'bfloat16'}),
        ("optimizer_options={'b1': 0.8}", 'optimizer_options', {'b1': 0.8}),
        ('optimizer_options={}', 'optimizer_options', {}),
        *(('detach=auto', 'detach', 'auto'), ('detach=0.2', 'detach', 0.2), ('detach=1', 'detach', 1)),
        *(('elastic', 'elastic', True), ('elastic=False', 'elastic', False), ('decay=1', 'decay', 1.0)),
    ],
)
def test_a_key_is_set_by_a_flag_or_behind_the_colon(setting, key, value):
    """As the type of the key; where a method chooses, or for a factory, as what it looks like."""
    behind = parse('--workdir=run', f'--config={digits.__file__}:optimizer=adamw,{setting}')
    for config in (parse(*DIGITS, '--config.optimizer=adamw', f'--config.{setting}'), behind):
        found = config.to_dict()[key]
        assert (found, type(found)) == (value, type(value))
        check_config(config)


@pytest.mark.filterwarnings('error')
def test_a_file_is_read_where_warnings_are_errors():
    assert parse(*DIGITS).ratio == 64


def mutated_line(chance):
    """A command line with some values for some keys, often with a character too many, too few, or another."""
    flags = [f'--workdir={chance.choice(["run", "../..", ""])}', f'--config={digits.__file__}']
    for key in chance.sample(list(REFUSED), chance.randint(0, 3)):
        value = chance.choice([*REFUSED[key], *ACCEPTED.get(key, []), 10**400, 5e-324, 'x' * 1000, b'a', {}])
        flags.append(f'--config.{key}={value}')
    place = chance.randrange(len(flags))
    at = chance.randrange(len(flags[place]))
    new = chance.choice(['', *string.printable, 'é', '\u202e', '\0', flags[place]])
    if chance.random() < 0.7:
        flags[place] = flags[place][:at] + new + flags[place][at + 1 :]
    return flags


def test_mutated_command_lines_are_accepted_or_refused_in_one_line(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    chance, accepted = random.Random(1), 0
    for _ in range(300):
        flags = mutated_line(chance)
        try:
            check_config(parse(*flags))
            accepted += 1
        except ValueError as error:
            assert '\n' not in str(error), flags
        except SystemExit as end:
            error = capsys.readouterr().err
            assert end.code == 2 and error.startswith('train.py: ') and error.count('\n') == 1, flags
    assert 10 < accepted < 200 and not list(tmp_path.iterdir())
