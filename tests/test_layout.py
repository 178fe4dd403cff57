"""The layout says what is what: imports only point downwards, in no circle, and the library stands alone."""

import ast
import graphlib
import itertools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from faults.mutations import mutations, place

import def_jax

ROOT = Path(__file__).parents[1]
# Each may import those before it.
ROOMS = (
    'ground',
    'wires',
    'compressors',
    'state',
    'options',
    'error_feedback',
    'presets',
    'diagnostics',
    'guards',
)
ROOMS += ('traffic', 'sharding', 'baselines', 'def_jax', 'elastic', 'nnx', 'tools', 'trainer', 'experiments')
LIBRARY = ROOMS[: ROOMS.index('def_jax') + 1]
DOORS = dict.fromkeys(('def_jax.plan', 'def_jax.launch'), 'tools')
DOORS |= dict.fromkeys(('def_jax.communication', 'def_jax.train'), 'trainer')
MODULES = {
    '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__'): path
    for folder in ('def_jax', 'experiments')
    for path in (ROOT / folder).rglob('*.py')
}


def room(module):
    """The folder or the file below `def_jax`; that itself; or `experiments`."""
    top, _, rest = module.partition('.')
    return DOORS.get(module) or (rest.partition('.')[0] if top == 'def_jax' and rest else top)


def imported(path):
    """What a file imports, at its top or within functions: modules, and names with their modules."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f'{path} has a relative import'
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


def imports(path):
    """The modules of this project that a file imports."""
    for name in imported(path):
        while name and name not in MODULES:
            name = name.rpartition('.')[0]
        if name:
            yield name


GRAPH = {module: set(imports(path)) - {module} for module, path in MODULES.items()}


# A command line builds its optimizer to check it, and then asks JAX for its devices.
PROGRAM = """
import sys, jax, optax
before = set(sys.modules)
import def_jax
print(*set(sys.modules) - before)
for method in def_jax.baselines.METHODS.values():
    method.optimizer(optax.identity(), optax.sgd(0.1), 'workers', def_jax.identity(), ratio=64)
jax.config.update('jax_num_cpu_devices', 3)
assert jax.device_count() == 3
"""


def test_the_library_is_what_its_import_loads_beside_jax_and_optax_and_asks_for_no_devices():
    command, environment = [sys.executable, '-c', PROGRAM], os.environ | {'XLA_FLAGS': ''}
    loaded = subprocess.check_output(command, cwd=ROOT, text=True, env=environment).split()
    ours = {module for module in loaded if module.split('.')[0] == 'def_jax'}
    library = {module for module in MODULES if room(module) in LIBRARY}
    assert ours == library - {'def_jax.baselines.methods'}
    assert {module.split('.')[0] for module in loaded} <= {'def_jax', 'jax', 'optax'}


@pytest.mark.parametrize('upper', ROOMS)
def test_imports_only_point_downwards(upper):
    allowed = ROOMS[: ROOMS.index(upper) + 1]
    mine = [module for module in GRAPH if room(module) == upper]
    upwards = [(m, other) for m in mine for other in GRAPH[m] if room(other) not in allowed]
    assert mine and not upwards


def test_imports_have_no_circle():
    try:
        graphlib.TopologicalSorter(GRAPH).prepare()
    except graphlib.CycleError as error:
        pytest.fail(' -> '.join(error.args[1]))


def test_what_jax_has_no_public_name_for_is_in_one_module():
    private = {
        m for m, path in MODULES.items() if any(name.startswith('jax._src') for name in imported(path))
    }
    assert private == {'def_jax.elastic.private'}


def test_the_tests_of_the_library_need_the_library_alone():
    """Deleting tools/, trainer/ and experiments/ leaves them as they are."""
    tests = ROOT / 'tests'
    files = [path for folder in LIBRARY for path in (tests / folder).glob('test_*.py')]
    names = ('error_feedback', 'methods', 'diagnostics', 'guards', 'traffic', 'hlo')
    files += [tests / f'test_{name}.py' for name in names]
    above = [(path.name, other) for path in files for other in imports(path) if room(other) not in LIBRARY]
    assert len(files) > 20 and not above


@pytest.mark.parametrize(
    ('optimizer', 'files', 'changes'),
    [
        (def_jax.error_feedback(def_jax.random_block(64), 'workers'), 11, 45),
        (def_jax.def_sgd(0.1, 64, 'workers'), 16, 81),
    ],
    ids=['Algorithm 1', 'preset'],
)
def test_a_gradient_crosses_few_files(optimizer, files, changes):
    """In one update of a leaf under pmap: what a reader has to open, and how often to turn to another."""
    library, calls = str(Path(def_jax.__file__).parent), []

    def note(frame, event, _):  # of calls alone, since it returns None
        file, name = frame.f_code.co_filename, frame.f_code.co_name
        if file.startswith(library) and not name.startswith('<'):
            calls.append(file)

    def update(grads):
        state, before = optimizer.init(grads), sys.gettrace()
        sys.settrace(note)
        try:
            return optimizer.update(grads, state, grads)
        finally:
            sys.settrace(before)

    jax.make_jaxpr(jax.pmap(update, axis_name='workers'))(jnp.zeros((8, 64, 64)))
    assert 0 < len(set(calls)) <= files
    assert sum(one != other for one, other in itertools.pairwise(calls)) <= changes


def test_every_fault_of_the_table_can_be_planted():
    """In tests/MUTATIONS.md; `faults/mutations.py` plants them and runs their tests."""
    for mutation in mutations():
        place(mutation, ROOT / 'def_jax')
        file, _, test = mutation.test.partition('::')
        assert f'def {test.partition("[")[0]}(' in (ROOT / 'tests' / file).read_text(), mutation
