"""Workers die and return: several processes on gloo, of which some are killed, frozen or something else."""

import contextlib
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import psutil
import pytest
from jax.experimental import multihost_utils

from def_jax.elastic import network, service
from def_jax.elastic.network import free_address
from def_jax.elastic.roll_call import SECRET

ROOT = Path(__file__).resolve().parents[1]
HANGS = 900  # seconds after which a process is taken to hang, however loaded the machine
PLAN = ['checkpoint=10', 'look=10', 'heartbeat=6', 'pause=0.05']


class Run:
    """Three processes of `benchmarks/reliability/elastic_worker.py`."""

    count = 3

    def __init__(self, folder):
        self.folder, self.address, self.processes = folder / 'run', free_address(), []
        self.folder.mkdir()
        chance = np.random.default_rng(0)
        images = chance.random((1100, 64), np.float32)
        np.savez(folder / 'digits.npz', images=images, labels=chance.integers(10, size=1100))

    def python(self, index):
        """What runs a program as this process."""
        del index
        return [sys.executable]

    def start(self, index, *plan, secret='ours'):
        program = ROOT / 'benchmarks' / 'reliability' / 'elastic_worker.py'
        command = [*self.python(index), program, self.folder, *PLAN, *plan]
        place = zip(service.LAUNCHED, (self.address, str(self.count), str(index)), strict=True)
        environment = os.environ | {'PYTHONPATH': str(ROOT), SECRET: secret} | dict(place)
        with (self.folder / f'{index}.log').open('ab') as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        self.processes.append(process)
        return process

    def start_all(self, *plan):
        """All processes, which have made some steps together."""
        processes = [self.start(index, *plan) for index in range(self.count)]
        self.wait(lambda: self.step(0) > 5)
        return processes

    def lines(self, index, kind='step'):
        path = self.folder / f'{index}.jsonl'
        texts = path.read_text().splitlines(keepends=True) if path.exists() else []
        found = [json.loads(text) for text in texts if text.endswith('\n')]  # the last may be half written
        return [line for line in found if kind in line]

    def notes(self):
        """What process 0 has noted."""
        return [line['note'] for line in self.lines(0, 'note')]

    def changes(self):
        """Its notes about who died, joined or was refused.

        Any step may have been repeated as well: on a busy machine a collective times out, or a death is first
        seen as a step that failed.
        """
        return [note for note in self.notes() if ': repeated: ' not in note]

    def step(self, index):
        return max((line['step'] for line in self.lines(index)), default=0)

    def wait(self, condition):
        deadline, some_live = time.monotonic() + HANGS, True
        while not condition():
            assert some_live and time.monotonic() < deadline, self.told()
            some_live = any(process.poll() is None for process in self.processes)
            time.sleep(0.05)

    def finish(self, *processes):
        """Lets the run end once these processes have made a step together; the first ends last."""
        self.together(*processes)
        (self.folder / 'stop').touch()
        for process in reversed(processes):
            self.ends(process)

    def together(self, *processes):
        """Waits until these processes have made a step together."""
        self.wait(lambda: self.are_together(*processes))

    def are_together(self, *processes):
        last = [(self.lines(index) or [{'pid': 0}])[-1] for index in range(len(processes))]
        return all(
            line['pid'] == process.pid and line['workers'] == len(processes)
            for line, process in zip(last, processes, strict=True)
        )

    def told(self):
        texts = [path for path in sorted(self.folder.iterdir()) if path.suffix in ('.jsonl', '.log')]
        return '\n'.join(path.read_text()[-1500:] for path in texts)

    def ends(self, process, code=0):
        assert process.wait(timeout=HANGS) == code, self.told()

    def assert_same_bits(self):
        """After each step, all who made it have the same parameters; y stays when workers come."""
        found = {}
        for index in range(self.count):
            for line in self.lines(index):
                found.setdefault(line['step'], set()).add((line['workers'], line['bits']))
        assert sorted(found) == list(range(1, max(found) + 1))  # no step is lost
        assert all(len(kinds) == 1 for kinds in found.values())
        for before, line in itertools.pairwise(self.lines(0)):
            assert line['workers'] <= before['workers'] or line['moved'] < 1e-5


def listening(pid):
    """The addresses at which a process accepts connections."""
    sockets = psutil.Process(pid).net_connections('tcp')
    return {s.laddr.ip.removeprefix('::ffff:') for s in sockets if s.status == psutil.CONN_LISTEN}


@pytest.fixture
def three(tmp_path):
    made = Run(tmp_path)
    yield made
    for process in made.processes:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ('after', 'died'),
    [
        ({'a': 1}, True),
        ({'a': 1, 'b': 2}, True),
        ({'a': 1, 'b': 1}, False),
        ({'a': 1, 'b': 1, 'c': 1}, False),
    ],
)
def test_a_death_is_told_by_who_lives_and_not_by_what_is_raised(monkeypatch, after, died):

    @contextlib.contextmanager
    def live(devices):
        live.devices = {'a': 1, 'b': 1}
        try:
            yield
        finally:
            live.devices = after

    monkeypatch.setattr(multihost_utils, 'live_devices', live)
    words = 'a process died' if died else 'a collective failed'
    with pytest.raises(RuntimeError, match=words), service.meeting(lambda: 'place'):
        raise RuntimeError('a collective failed')


@pytest.mark.usefixtures('live_devices')
@pytest.mark.parametrize(
    ('error', 'told'),
    [
        (jax.errors.JaxRuntimeError('boom\nmore'), 'process 0: boom'),
        (ValueError('Gloo boom'), 'process 0: Gloo boom'),
        (ValueError('boom'), ''),
    ],
)
def test_all_are_told_of_a_collective_that_failed_for_one(error, told):
    kind, words = (service.FailedError, told) if told else (ValueError, 'boom')
    with pytest.raises(kind, match=f'^{words}$'), service.meeting(lambda: 'place'):
        raise error


@pytest.mark.parametrize(
    ('host', 'numbers', 'listens', 'own'),
    [
        ('127.0.0.1', ['127.0.0.1'], '127.0.0.1:7', '127.0.0.1'),
        ('localhost', ['::1', '127.0.0.1'], '127.0.0.1:7', '127.0.0.1'),
        ('[::1]', ['::1'], '[::1]:7', '::1'),
        ('node0', ['127.0.1.1'], None, None),  # Debian's entry for a machine's own name
        ('127.0.0.2', ['127.0.0.2'], '127.0.0.2:7', '127.0.0.1'),
        ('203.0.113.9', ['203.0.113.9'], None, 'routed'),  # not of this machine
        ('nowhere', [], None, None),
    ],
)
def test_processes_listen_where_the_address_says(monkeypatch, host, numbers, listens, own):
    def resolve(name, port, type):
        if not numbers:
            raise socket.gaierror('unknown')
        return [(socket.AF_INET6 if ':' in x else socket.AF_INET, type, 0, '', (x, 0)) for x in numbers]

    monkeypatch.setattr(socket, 'getaddrinfo', resolve)
    assert network.listening_address(f'{host}:7') == listens
    found = network.own_address(f'{host}:7')
    assert found == own if own != 'routed' else found != '127.0.0.1'


SUMS = """
import jax, jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from def_jax import elastic

elastic.initialize({address!r}, 1, 0, local_devices=2, cpu=True)
mesh = jax.sharding.Mesh(jax.devices()[:2], ('workers',))
def sums(tree):
    return jax.lax.psum(tree, 'workers')

sums = jax.shard_map(sums, mesh=mesh, in_specs=P('workers'), out_specs=P())
print(jax.jit(sums).lower((jnp.ones(256), jnp.ones(2))).compile().as_text().count(' all-reduce('))
"""


def test_all_reduces_stay_apart_on_cpus_and_the_users_flags_hold(tmp_path):
    """In one that XLA combines, a process whose first sum failed begins the next, and gloo aborts it."""
    code, flags = SUMS.format(address=free_address()), tmp_path / 'flags'
    flags.write_text(f'--xla_dump_to={tmp_path / "dump"}\n')
    environment = os.environ | {'XLA_FLAGS': str(flags)}  # which may name a file
    command = [sys.executable, '-c', code]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout == '2\n' and any((tmp_path / 'dump').iterdir()), done.stderr


@pytest.mark.slow
def test_a_worker_dies_and_returns(three):
    """A process is a worker of two devices."""
    first, second, third = three.start_all('shards=2')
    third.kill()
    three.wait(lambda: three.lines(0)[-1]['workers'] == 2)
    third = three.start(2, 'shards=2')
    listened = set().union(*(listening(process.pid) for process in (first, second)))
    three.finish(first, second, third)
    three.assert_same_bits()
    assert listened == {'127.0.0.1'}  # the service and gloo: nothing is open to other machines
    (changes,) = (line['end'] for line in three.lines(0, 'end'))
    assert [workers for _, workers in changes] == [3, 2, 3]
    died, joined = three.changes()
    assert 'process 2 died, 3 -> 2 workers; y loses a residual of norm' in died
    assert died.endswith('processes 0, 1 went on') and 'process 2 joined, 2 -> 3 workers' in joined
    assert not three.lines(1, 'note')  # one process speaks
    # who lived saw every step, and looked at every tenth
    assert [line['step'] for line in three.lines(1)] == list(range(1, three.step(1) + 1))
    assert [line['at'] for line in three.lines(1, 'looked')] == list(range(10, three.step(1) + 1, 10))


@pytest.mark.slow
def test_workers_die_at_bad_moments(three):
    """While compiling, in an evaluation, in a step, compiling for another's admission; two at once."""
    first, third = three.start(0), three.start(2)
    for where in ('trace:1', 'look:2', 'step:15'):
        three.ends(three.start(1, f'die={where}'), -signal.SIGKILL)
    second = three.start(1, 'die=trace:2')  # on a busy machine, for a step that failed
    three.wait(lambda: second.poll() is not None or three.are_together(first, second, third))
    third.kill()
    third = three.start(2)
    three.ends(second, -signal.SIGKILL)
    second = three.start(1)
    three.together(first, second, third)
    before = len(three.changes())
    second.kill()
    third.kill()
    second, third = three.start(1), three.start(2)  # before it was noticed
    three.finish(first, second, third)
    three.assert_same_bits()
    died = re.findall(r'process(?:es)? ([\d, ]+) died', '\n'.join(three.changes()[before:]))
    assert sorted(', '.join(died).split(', ')) == ['1', '2']  # at once, or one after the other


@pytest.mark.slow
def test_who_dies_waiting_for_the_others_is_met_again(three):
    """The service takes who returned for the one who waited, so the others meet somebody who isn't there."""
    plan = ('answer=6',)
    first, second, third = three.start(0, *plan, 'late=15'), three.start(1, *plan), three.start(2, *plan)
    three.wait(lambda: three.lines(0, 'late'))
    time.sleep(1)  # the others have ended the step
    second.kill()
    second = three.start(1, *plan)
    three.wait(lambda: three.lines(1, 'connected')[-1]['pid'] == second.pid)
    (three.folder / 'go').touch()
    three.finish(first, second, third)
    three.assert_same_bits()


@pytest.mark.slow
def test_a_step_that_failed_is_repeated_and_what_was_given_up_or_damaged_goes_no_further(three):
    """A frozen worker that was given up writes nothing; what a newcomer was given is compared once."""
    first, second = three.start(0), three.start(1, 'fail=15')
    third = three.start(2, 'freeze=step:30')  # the line of the step before is written
    three.wait(lambda: three.step(0) > 30 and three.lines(0)[-1]['workers'] == 2)
    before = len(three.lines(2))
    third.send_signal(signal.SIGCONT)
    assert third.wait(timeout=HANGS) != 0
    assert len(three.lines(2)) == before
    third = three.start(2)
    three.together(first, second, third)
    three.assert_same_bits()
    assert any('repeated: ' in note and 'process 1: planned' in note for note in three.notes())
    died, joined = three.changes()
    assert 'process 2 died, 3 -> 2 workers' in died and 'process 2 joined' in joined
    third.kill()
    third = three.start(2, 'flip=0')
    for index, process in ((2, third), (1, second), (0, first)):
        assert process.wait(timeout=HANGS) != 0, three.told()
        log = (three.folder / f'{index}.log').read_text()
        assert 'should have alike, differ among processes 0, 1, 2.' in log


@pytest.mark.slow
@pytest.mark.parametrize('dies', [False, True])
def test_what_somebody_changed_for_one_is_not_saved_and_the_others_do_not_go_on_with_it(three, dies):
    """All end before the next checkpoint, or when they meet again after a death."""
    plan = ('checkpoint=0', 'look=0') if dies else ()
    first, second = three.start(0, *plan), three.start(1, *plan, 'flip=25')
    third = three.start(2, *plan, *(['die=step:40'] if dies else []))
    for index, process in enumerate([first, second] if dies else [first, second, third]):
        assert process.wait(timeout=HANGS) != 0, three.told()
        assert 'This state was not saved.' in (three.folder / f'{index}.log').read_text()
    if not dies:
        with np.load(three.folder / 'checkpoint.npz') as saved:
            assert saved['step'] == 20


@pytest.mark.slow
def test_the_few_who_are_left_give_up_together(three):
    """Also who has come back meanwhile, and whose patience is not over."""
    plan = ('checkpoint=0', 'least=3')
    first, second, third = three.start_all(*plan)
    second.kill()
    third.kill()
    second = three.start(1, *plan)
    three.wait(lambda: any('process 1 joined' in note for note in three.changes()))
    (three.folder / 'tired-0').touch()
    three.ends(first, 7)
    (line,) = three.lines(0, 'error')
    assert line['error'] == 'TooFewError' and '2 workers after step' in line['text']
    assert second.wait(timeout=HANGS) != 0  # of itself, or as process 0 has ended


@pytest.mark.slow
def test_newcomers_that_run_something_else_are_refused_and_too_few_workers_end(three):
    """Another seed, dtype or secret, one after the other, and then one of the others; of whom two die."""
    plan = ('checkpoint=0', 'least=2', 'patience=2')  # a checkpoint of the others' state would not fit
    first, second, third = three.start_all(*plan)
    third.kill()
    for number, (other, secret, reason) in enumerate(
        [
            ('seed=1', 'ours', 'configuration, seed or data'),
            ('dtype=bfloat16', 'ours', 'structure, shape or dtype of the parameters or the optimizer state'),
            ('seed=0', 'guessed', 'secret (DEF_JAX_SECRET)'),
        ]
    ):
        three.ends(three.start(2, *plan, other, secret=secret), 7)
        line = three.lines(2, 'error')[number]
        assert line['error'] == 'RefusedError' and f'process 2 has another {reason} than the' in line['text']
        assert any(f'process 2 refused: another {reason}' in note for note in three.changes())
    third = three.start(2, *plan)
    three.together(first, second, third)
    three.assert_same_bits()
    assert all(np.isfinite(line['loss']) for line in three.lines(0))
    third.kill()
    three.wait(lambda: three.lines(0)[-1]['workers'] == 2)
    second.kill()
    three.ends(first, 7)
    (line,) = three.lines(0, 'error')
    assert line['error'] == 'TooFewError' and '1 workers after step' in line['text']
