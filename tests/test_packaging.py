"""What a user installs: names, requirements, versions. .ci/wheel builds the wheel and tries it."""

import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from test_layout import imported

import def_jax
from def_jax.trainer.launch import __main__ as train
from def_jax.trainer.launch.exits import ExitCode

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
CONSTRAINTS = (ROOT / 'constraints.txt').read_text().splitlines()

# Programs in an environment without the packages of the extra `training`.
BARE = """
import runpy, sys
sys.modules.update(dict.fromkeys(['flax', 'matplotlib', 'ml_collections', 'rich']))
plan = '--params=1e6 --step-time=0.1 --bandwidth=1gbit --workers=4'.split()
for module, *arguments in (
    ('train', '--config=mine.py'), ('plan', *plan), ('plan', *plan, '--output=plan.png'),
    ('communication', '--config=mine.py'), ('communication', '--help'),
):
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(f'def_jax.{module}', run_name='__main__')
    except SystemExit as end:
        print(end.code, file=sys.stderr)
"""


def distributions(folder):
    """The distributions that a folder's files import, by the names under which they are required."""
    modules = {module.split('.')[0] for file in folder.rglob('*.py') for module in imported(file)}
    found = metadata.packages_distributions()
    ours = {'def_jax', 'examples', 'configs', '_error_feedback'}
    third_party = modules - set(sys.stdlib_module_names) - ours
    names = [
        {name.lower().replace('_', '-') for name in found.get(module, [module])} for module in third_party
    ]
    return set().union(*(several & DECLARED or several for several in names))  # several: orbax is a namespace


DECLARED = {
    re.match(r'[\w-]+', line)[0].lower().replace('_', '-')
    for extra in ('training', 'tensorflow')
    for line in PROJECT['dependencies'] + PROJECT['optional-dependencies'][extra]
}


def test_programs_name_the_extra_that_they_need(tmp_path):
    environment = os.environ | {'PYTHONPATH': str(ROOT)}
    process = subprocess.run(
        [sys.executable, '-c', BARE], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    remedy = "is not installed; it comes with pip install 'def_jax[training]'"
    expected = [f'train: ml_collections {remedy}', '2', '0', f'plan: matplotlib {remedy}', '2']
    assert process.stderr.splitlines() == [*expected, f'communication: ml_collections {remedy}', '2', '0']
    assert 'times as fast' in process.stdout and '--workers=0,0,0,0,1,1,1,1' in process.stdout


def test_what_the_package_and_the_examples_import_is_what_it_requires():
    imported = distributions(ROOT / 'def_jax')
    assert imported - {'numpy'} <= DECLARED  # JAX requires NumPy
    # TFDS needs the second; of the third a file is read.
    assert DECLARED - imported <= {'tensorflow-cpu', 'importlib-resources', 'scikit-learn'}
    # Some examples are about these, as their docstrings say.
    assert distributions(ROOT / 'examples') <= DECLARED | {'numpy', 'keras', 'equinox', 'kauldron'}


def test_jax_for_gpus_is_the_same_jax():
    (jax,) = (line for line in PROJECT['dependencies'] if line.startswith('jax'))
    assert PROJECT['optional-dependencies']['cuda'] == [jax.replace('jax', 'jax[cuda12]')]


@pytest.mark.parametrize('name', ['digits', 'cifar10', 'cifar100', 'imagenet'])
def test_a_configuration_file_can_be_copied_alone(name):
    modules = {module.split('.')[0] for module in imported(ROOT / 'configs' / f'{name}.py')}
    assert modules == {'def_jax', 'ml_collections'}


def test_the_newest_release_of_the_changelog_is_this_version():
    newest = re.search(r'^## (\d\S+)', (ROOT / 'CHANGELOG.md').read_text(), re.MULTILINE)[1]
    assert newest == def_jax.__version__


def test_ruff_is_pinned_once():
    (required,) = re.findall(
        r'^ruff==(\S+)$', '\n'.join(PROJECT['optional-dependencies']['lint']), re.MULTILINE
    )
    assert f'ruff=={required}' in CONSTRAINTS
    hooks = (ROOT / '.pre-commit-config.yaml').read_text()
    assert re.findall(r'ruff-pre-commit\n\s+rev: v(\S+)', hooks) == [required]


def test_the_versions_that_passed_are_names_and_versions_of_all_that_is_required():
    pinned = re.compile(r"[a-z0-9-]+==[\w.]+(; python_version (<|>=) '3\.\d+')?")
    assert all(pinned.fullmatch(line) for line in CONSTRAINTS)
    required = {
        re.match(r'[\w-]+', line)[0] for extra in PROJECT['optional-dependencies'].values() for line in extra
    }
    names = {line.partition('==')[0] for line in CONSTRAINTS}
    assert {name.lower().replace('_', '-') for name in required} <= names | {'jax'}


def test_help_lists_the_exit_codes():
    for code in ExitCode:
        assert f'  {code:d}  {code.description}\n' in train.__doc__
