"""What another process does not see yet, as on a network file system: all take the same checkpoint."""

import contextlib
import threading
import types
from concurrent import futures

import numpy as np
import pytest
import training_fixtures as fixtures

from def_jax.trainer import loop
from def_jax.trainer.checkpointing import checkpoints, manifest
from def_jax.trainer.data.dataset import Dataset
from def_jax.trainer.data.in_memory import Arrays
from def_jax.trainer.launch import processes


@pytest.fixture
def as_two_processes(monkeypatch):
    """Runs `work()` in two threads, which agree as two processes do; gives both results, and who calls."""
    told, meeting, me = [None, None], threading.Barrier(2, timeout=60), threading.local()

    def everywhere(value):
        told[me.index] = value
        meeting.wait()
        values = tuple(told)
        meeting.wait()
        return values

    def process(index, work):
        me.index = index
        return work()

    def run(work):
        with futures.ThreadPoolExecutor(2) as pool:
            return list(pool.map(process, (0, 1), (work, work)))

    monkeypatch.setattr(processes, 'broadcast', lambda value: everywhere(value)[0])
    monkeypatch.setattr(processes, 'any_process', lambda flag: any(everywhere(flag)))
    return run, me


@pytest.mark.parametrize(
    ('late', 'listed', 'looks', 'step'),
    [
        pytest.param(1, [], 2, 9, id='process 1 sees none at first'),
        pytest.param(1, [7, 9], 99, 7, id='process 1 never sees the files of the newest'),
        pytest.param(0, [7], 0, 7, id='process 0 sees an old listing'),
    ],
)
def test_processes_agree_on_the_checkpoint(
    recorded, saved, warnings, monkeypatch, as_two_processes, late, listed, looks, step
):
    """One of them is late: it sees another listing, and the files of step 9 only after some looks."""
    (run, me), steps_of, read = as_two_processes, checkpoints.Checkpoints.steps, manifest.read_verified
    unseen = iter(range(looks))

    def read_late(path, step):
        if me.index == late and step == 9 and next(unseen, None) is not None:
            raise manifest.DamagedError('it has no manifest.json')
        return read(path, step)

    monkeypatch.setattr(processes, 'LATE_SECONDS', 4)
    monkeypatch.setattr(processes.time, 'sleep', lambda seconds: None)
    monkeypatch.setattr(manifest, 'read_verified', read_late)
    monkeypatch.setattr(
        checkpoints.Checkpoints, 'steps', lambda self: listed if me.index == late else steps_of(self)
    )
    for state in run(lambda: fixtures.restored(saved, recorded.experiment)):
        fixtures.assert_same_bits(fixtures.shards(state), recorded.states[step])
    assert len(warnings) == (2 if looks > 4 else 0)  # of both


@pytest.mark.parametrize('same', [True, False])
def test_processes_with_other_data_than_the_first_are_refused(monkeypatch, as_two_processes, same):
    run, me = as_two_processes
    monkeypatch.setattr(processes, 'count', lambda: 2)

    def check():
        text = Arrays({'label': np.arange(4) + (me.index and not same)})
        config = types.SimpleNamespace(dataset='python_stdlib', elastic=False)
        loop._check_data(types.SimpleNamespace(dataset=Dataset(text, text), config=config))

    with contextlib.nullcontext() if same else fixtures.refused('holds other examples for some processes'):
        run(check)
