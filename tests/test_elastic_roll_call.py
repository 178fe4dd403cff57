"""What processes tell each other before they compute: proofs of a secret, and versions."""

import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor

import jax
import pytest

from def_jax.elastic import roll_call, service


@pytest.fixture
def processes(monkeypatch):
    """Calls `function(index)` in threads that stand for processes, which tell and ask each other."""
    told, place = {}, threading.local()

    def ask(key):
        while key not in told:
            time.sleep(0.001)
        return told[key]

    for module in (roll_call, service):
        monkeypatch.setattr(module, 'tell', told.__setitem__)
        monkeypatch.setattr(module, 'ask', ask)
        monkeypatch.setattr(module, 'versions', lambda: f'JAX {place.version}')
    monkeypatch.setattr(jax, 'process_index', lambda: place.process_id)
    monkeypatch.setattr(service, 'global_state', place)

    def each(function, *versions):
        def process(index, version):
            place.process_id, place.num_processes, place.version = index, len(versions), version
            return function(index)

        with ThreadPoolExecutor(len(versions)) as pool:
            return list(pool.map(process, range(len(versions)), versions))

    each.told = told
    return each


def test_a_proof_holds_for_one_exchange(processes):
    """A stranger that saw a newcomer join says the same again; the nonces of the others differ."""
    group = types.SimpleNamespace(name='group', incarnations=((0, 5), (1, 7)))

    def answered(index, secret='ours'):
        call = roll_call.Call(index == 0, 3, True, [[1]], {'seed': '0'})
        return roll_call.RollCall(secret)(group, call)

    both = processes(answered, '1', '1')
    assert [one.calls.keys() for one in both] == [{0, 1}] * 2 and not both[0].refused
    assert both[1].leader == 0 and both[1].valid == [0]
    for key in [key for key in processes.told if key.endswith('/0')]:
        del processes.told[key]  # process 0 has begun again, and what process 1 said is repeated
    assert processes(answered, '1')[0].refused == {1: 'secret (DEF_JAX_SECRET)'}
    processes.told.clear()
    both = processes(lambda index: answered(index, ('ours', 'guessed')[index]), '1', '1')
    assert [one.refused for one in both] == [{1: 'secret (DEF_JAX_SECRET)'}] * 2


def test_another_version_is_refused_whatever_its_call_is_like(processes):
    """By all alike, who say which each has; process 0 has the service, and so the right one."""
    group = types.SimpleNamespace(name='group', incarnations=((0, 5), (1, 7), (2, 8)))

    def answered(index):
        identity = {'seed': '0'} if index != 1 else {'grain': '0'}  # of another form
        return roll_call.RollCall('')(group, roll_call.Call(True, 3, True, [[1]], identity)).refused

    assert processes(answered, '1', '2', '1') == [{1: 'version (JAX 2, not JAX 1)'}] * 3


def test_processes_that_start_together_are_refused_unless_their_versions_agree(processes):
    def checked(index):
        with pytest.raises(service.RefusedError) as error:
            service.check_versions()
        return str(error.value)

    (said,) = set(processes(checked, '1', '2', '1', '2'))
    assert said.startswith('process 0 has JAX 1, but process 1 has JAX 2; process 3 has JAX 2. Install the')
    processes.told.clear()
    assert processes(lambda index: service.check_versions(), '1', '1') == [None] * 2
