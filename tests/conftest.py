"""Runs the suite on eight fake CPU devices; this must happen before JAX initialises."""

import atexit
import contextlib
import gc
import importlib.util
import os
import resource
import shutil
import sys
import tempfile
import types
from pathlib import Path

# Collectives of many fake devices on few cores can starve each other of threads; this gives them enough.
os.environ.setdefault('NPROC', '16')
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Nobody asks where in the source these programs' operations come from; it is a twelfth of the CPU time.
os.environ.setdefault('JAX_TRACEBACK_IN_LOCATIONS_LIMIT', '0')
# Each process of a run that has them has cores of its own; else the threads of one delay those of the others.
if hasattr(os, 'sched_getaffinity'):  # on Linux
    cores, processes = sorted(os.sched_getaffinity(0)), int(os.environ.get('PYTEST_XDIST_WORKER_COUNT', '1'))
    if processes <= len(cores):
        number = int(os.environ.get('PYTEST_XDIST_WORKER', 'gw0').removeprefix('gw'))
        os.sched_setaffinity(0, cores[number::processes])
# The processes of a run share what they compile. Not from run to run, unless a folder is given.
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    os.environ['JAX_COMPILATION_CACHE_DIR'] = tempfile.mkdtemp(prefix='def_jax-compiled-')
    atexit.register(shutil.rmtree, os.environ['JAX_COMPILATION_CACHE_DIR'], ignore_errors=True)
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.1')
if importlib.util.find_spec('def_jax') is None:  # neither installed nor found through pytest's `pythonpath`
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import compiling

os.environ.setdefault('XLA_FLAGS', ' '.join(compiling.FLAGS))

import chex
import jax
import pytest

from def_jax.elastic import network

NUM_DEVICES = 8
chex.set_n_cpu_devices(NUM_DEVICES)
jax.devices()  # starts JAX now: else a first run with fewer fake devices would set their number
# LLVM optimises little: what the tests run takes longer to compile than to run.
jax.config.update('jax_disable_most_optimizations', True)


SLOW_TOGETHER = ('test_language_run.py', 'test_loop.py', 'test_command_line.py')  # they share runs


@pytest.hookimpl(optionalhook=True)  # of xdist, whose own groups pytest 9.2 does not see
def pytest_xdist_make_scheduler(config, log):
    """A process gets whole files, and one all that train, for what these share; slow tests one by one."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.partition('::')[0]
            if config.option.markexpr == 'slow':
                return file if file.endswith(SLOW_TOGETHER) else nodeid
            return 'trainer' if file.startswith(('tests/trainer/', 'tests/examples/')) else file

    return Scheduling(config, log)


@pytest.fixture(autouse=True, scope='session')
def ports_of_this_process():
    """Two processes of pytest at once do not choose the same port, which is free until a program listens."""
    number, count = (os.environ.get(f'PYTEST_XDIST_WORKER{name}', '') for name in ('', '_COUNT'))
    if count:
        network._PORTS = network._PORTS[int(number.removeprefix('gw')) :: int(count)]


def pytest_collection_finish(session):
    """Collects garbage less often: for files that mostly trace, that is a fifth of the CPU time."""
    del session
    gc.collect()
    gc.freeze()  # what was imported stays
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture
def full_optimization():
    """Programs are compiled as a user's are: for what is read from their HLO of copies and of memory."""
    jax.config.update('jax_disable_most_optimizations', False)
    yield
    jax.config.update('jax_disable_most_optimizations', True)


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    """The folder of digits, while a small network stands in for theirs and runs share what they compile."""
    import training_fixtures  # not for the tests of the library: this imports the trainer

    with training_fixtures.tiny_network(tmp_path_factory) as folder:
        yield folder


@pytest.fixture(scope='module')
def recorded(data_dir):
    """The uninterrupted run that others are compared with."""
    import training_fixtures

    return training_fixtures.recorded_run(data_dir)


@pytest.fixture
def live_devices(monkeypatch):
    """JAX's service is played: all devices live, in an incarnation that a test may change; nothing fails."""
    from jax.experimental import multihost_utils

    from def_jax.elastic import service

    class Live:
        devices, incarnation = None, 1

        @contextlib.contextmanager
        def __call__(self, devices):
            self.devices = dict.fromkeys(devices, self.incarnation)
            yield devices

    live = Live()
    told = live.told = {}  # the entries of the service
    client = types.SimpleNamespace(
        key_value_dir_get=lambda name: [pair for pair in told.items() if pair[0].startswith(name)],
        key_value_set=lambda key, value, allow_overwrite=False: told.update({key: value}),
        key_value_delete=told.pop,
        blocking_key_value_get=lambda key, timeout: told[key],
    )
    monkeypatch.setattr(multihost_utils, 'live_devices', live)
    monkeypatch.setattr(service, '_state', types.SimpleNamespace(client=client))
    return live


@pytest.fixture
def small_files():
    """Limits the bytes of a file in a block, as on a disk that is full; Python ignores the signal for it.

    No longer: the limit is that of pytest's own output, too, where this goes to a file.
    """

    @contextlib.contextmanager
    def limited(size):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    return limited


@pytest.fixture(scope='session')
def environment():
    """A user's environment, without what the suite sets; runs share what they compile."""
    unset = ('JAX_NUM_CPU_DEVICES', 'NPROC')
    return {name: value for name, value in os.environ.items() if name not in unset} | {
        'JAX_PLATFORMS': 'cpu',
        'JAX_COMPILATION_CACHE_DIR': os.environ['JAX_COMPILATION_CACHE_DIR'] + '/of_programs',
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
        # These runs compile longer than they train, and fake devices on a busy core wait long for each other.
        'XLA_FLAGS': ' '.join(
            [
                *(flag for flag in os.environ.get('XLA_FLAGS', '').split() if 'device_count' not in flag),
                '--xla_backend_optimization_level=0',
                '--xla_cpu_collective_call_terminate_timeout_seconds=600',
            ]
        ),
        'COLUMNS': '200',
        'PYTHONPATH': str(Path(__file__).resolve().parents[1]),
    }
