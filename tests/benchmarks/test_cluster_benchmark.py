"""The cluster benchmark: what it makes of its figures, what it refuses, and that nothing of it stays."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.cluster import network, page, timing

ROOT = Path(__file__).resolve().parents[2]
TINY = ['--model=mlp_tiny', '--workers=2', '--rounds=2', '--steps=2']


def run(*flags, **options):
    command = [sys.executable, '-m', 'benchmarks.cluster', *flags]
    environment = os.environ | {'PYTHONPATH': str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, **options)


def left_behind(process):
    owner = f'{network.PREFIX}-{process.pid}-'
    listed = subprocess.run(['ip', 'netns', 'list'], capture_output=True, text=True).stdout
    return owner in listed or any(Path('/etc/netns').glob(f'{owner}*'))


def possible():
    """Whether this machine lets us make a network namespace."""
    if os.geteuid() != 0 or not (shutil.which('ip') and shutil.which('tc')):
        return False
    name = f'{network.PREFIX}-probe-{os.getpid()}'
    made = subprocess.run(['ip', 'netns', 'add', name], capture_output=True).returncode == 0
    subprocess.run(['ip', 'netns', 'del', name], capture_output=True)
    return made


# --- What is made of the figures ---


def report(milliseconds, sent=(0, 0), bytes_=0):
    return {
        'seconds': [ms / 1e3 for ms in milliseconds],
        'counters': {'tx_bytes': sent[0], 'tx_packets': sent[1]},
        'hlo': {'all_reduces': int(bytes_ > 0), 'bytes': bytes_},
    }


def test_the_workers_figures_are_kept_and_their_traffic_averaged():
    merged = page.merged([report([1, 5, 3], (300, 6)), report([2, 4, 9], (600, 12))])
    np.testing.assert_allclose(merged['seconds'], [[0.001, 0.005, 0.003], [0.002, 0.004, 0.009]])
    assert (merged['tx_bytes'], merged['tx_packets']) == (150, 3)
    assert merged['hlo'] == {'all_reduces': 0, 'bytes': 0}


def test_what_a_ring_sends():
    assert page.ring_bytes(1000, 2, 0) == 1000
    assert page.ring_bytes(1000, 4, 10) == 1500 + 660


@pytest.fixture
def results():
    """Figures of one model on 2 workers: compute takes 10 ms, an update 2, DEF's 4, dense traffic 80.

    One worker at a time computes in 6, and updates in 1 and 1.5.
    """

    def variants(**steps):
        return {name: page.merged([report([ms] * 3, *traffic)]) for name, (ms, *traffic) in steps.items()}

    dense, message = 1_000_000, 15_625
    jax = variants(
        compute=(10,),
        local_sgd=(12,),
        local_def64=(14,),
        local_def64_m0=(13,),
        compute_alone=(6,),
        local_sgd_alone=(7,),
        local_def64_alone=(7.5,),
        local_def64_m0_alone=(7.2,),
        dense=(92, (3 * (dense + 66 * 5), 15), dense),
        def64=(16, (3 * (message + 66), 3), message),
        def64_m0=(14.5, (3 * message, 3), message),
        def256=(15, (3 * message, 3), message // 4),
        def256_m0=(13.5, (3 * message, 3), message // 4),
        def_a64_bf16=(16, (3 * message, 3), message),
    )
    torch = variants(compute=(9,), local_sgd=(11,), ddp=(80,), ddp_fp16=(50,))
    return {
        'mlp': {
            'batch': 4,
            'failed': {'ddp_powersgd': 'it hung'},
            'jax': {'params': 250_000, 'version': '0', 'variants': jax},
            'torch': {'params': 250_000, 'version': '0', 'variants': torch},
        }
    }


def cells(text, first):
    """The cells of the rows that begin so, by row."""
    rows = [line for line in text.splitlines() if line.startswith(f'| {first}')]
    return [[cell.strip() for cell in row.strip('|').split('|')] for row in rows]


def test_steps_are_split_and_compared(results):
    text = '\n'.join(page.sections({'workers': 2, 'bandwidth': '100mbit'}, results))
    step = cells(text, 'DEF, ratio 64 |')[0]
    # 16 ms a step: 10 to compute, 6 for the rest, 2 of it more than without communication; dense takes 92.
    assert [step[0], step[1].split()[0], *step[2:]] == ['DEF, ratio 64', '16', '10', '6', '2', '5.75']
    assert 'PowerSGD' in text and 'it hung' in text


def test_targets_are_judged(results):
    text = '\n'.join(page.sections({'workers': 2, 'bandwidth': '100mbit'}, results))
    (update,) = cells(text, 'communication + update at 64, over dense')
    (least,) = cells(text, 'the same at 256 without momentum')
    (alone,) = cells(text, 'communication alone at 64')
    (at64,), (at256,) = cells(text, 'speed-up at 64'), cells(text, 'speed-up at 256')
    (peer,) = cells(text, 'communication + update at 64, over the best PyTorch')
    assert update[1:] == ['0.073 (0.073 to 0.073)', '≤ 0.05', 'no']  # 6 of 82
    assert least[1:] == ['0.043 (0.043 to 0.043)', '≤ 0.05', 'yes']  # 3.5 of 82
    assert alone[1:] == ['0.025 (0.025 to 0.025)', '≤ 0.05', 'yes']  # 2 of 80
    assert [row[1][:5] for row in (at64, at256)] == ['5.750', '6.133']
    assert [row[2:] for row in (at64, at256)] == [['≥ 3.6', 'yes'], ['≥ 4', 'yes']]
    assert 'fp16' in peer[0] and peer[1:] == ['0.146 (0.146 to 0.146)', '≤ 0.5', 'yes']  # 6 of 41


def test_the_update_of_one_worker_at_a_time_is_shown_beside_that_of_all(results):
    text = '\n'.join(page.sections({'workers': 2, 'bandwidth': '100mbit'}, results))
    shown = text[text.index('### The update') : text.index('### Bytes')]
    assert cells(shown, 'JAX, no communication: momentum SGD')[0][1:] == ['2.0', '1.0']
    assert cells(shown, 'JAX, no communication: DEF, 1/64 |')[0][1:] == ['4.0', '1.5']
    assert cells(shown, 'JAX, no communication: DEF, 1/64, no momentum')[0][1:] == ['3.0', '1.2']
    (target,) = cells(text, 'communication, and the update one worker at a time')
    assert target[1:] == ['0.043 (0.043 to 0.043)', '≤ 0.05', 'yes']  # 2 + 1.5 of 80 + 1
    without = cells(text, 'DEF, ratio 64, no momentum |')[0]
    assert without[4] == '2'  # 14.5 less the 13 of the same without communication


def test_workers_take_turns_where_one_runs_at_a_time(monkeypatch):
    monkeypatch.setattr(timing, 'counters', lambda: {'tx_bytes': 0})

    def run(worker):
        done, job = [], {'warm_up': 1, 'rounds': 2, 'steps': 3, 'num_workers': 2}
        step, barrier = (lambda: done.append('step')), (lambda: done.append('barrier'))
        found = timing.measure({'own': step}, barrier, job | {'worker': worker, 'alone': ['own']})
        assert [len(found[name]['seconds']) for name in ('own', 'own_alone')] == [6, 6]
        return ''.join(word[0] for word in done)

    # A step to warm up, then three: between the same barriers by one worker, and by the other one later.
    assert run(0) == 3 * 'sbsssbssssbb'
    assert run(1) == 3 * 'sbsssbbssssb'


def test_what_noise_decides_is_not_called_met_or_missed(results):
    variants = results['mlp']['jax']['variants']
    variants['def64']['seconds'] = [[0.010, 0.014, 0.014, 0.018, 0.012, 0.016, 0.020]]
    text = '\n'.join(page.sections({'workers': 2, 'bandwidth': '100mbit'}, results))
    (update,) = cells(text, 'communication + update at 64, over dense')
    assert update[3] == 'not resolved'


def test_bytes_and_the_plan_are_set_against_what_was_measured(results):
    text = '\n'.join(page.sections({'workers': 2, 'bandwidth': '100mbit'}, results))
    sent = text[text.index('### Bytes') :]
    (dense,) = cells(sent[: sent.index('### `def_jax.plan`')], 'JAX, dense')
    assert dense[1:] == ['1', '1,000,000', '1,000,330', '1,000,330', '1.000']
    planned = text[text.index('### `def_jax.plan`') :]
    (dense,), (ours,) = cells(planned, 'JAX, dense'), cells(planned, 'DEF, ratio 64')
    # 12 ms and a ring of 1 MB over two workers at 100 Mbit/s, 80 ms, and twice 50 µs.
    assert dense[1:] == ['92', '92', '+0 %', '1.00', '1.00']
    assert ours[1:3] == ['15', '16']  # 12 + 2 + 80 / 64 + 0.1


def test_no_message_passes_in_one_burst():
    assert (network.burst('1gbit'), network.burst('100mbit')) == (250_000, 25_000)  # 2 ms
    assert network.burst('1mbit') >= 2 * 1514  # else the shaper drops whole packets


def test_what_pytorchs_workers_import_needs_no_jax():
    modules = 'cluster.timing', 'cluster.workloads', 'time_to_accuracy.workload'
    imports = '; '.join(f'import benchmarks.{module}' for module in modules)
    subprocess.run([sys.executable, '-c', f"import sys; sys.modules['jax'] = None; {imports}"], check=True)


# --- What is refused ---


def test_it_says_that_it_needs_root(monkeypatch):
    monkeypatch.setattr(os, 'geteuid', lambda: 1000)
    with pytest.raises(network.Unavailable, match='needs root'):
        network.check_available()


def test_it_says_that_it_needs_iproute2(monkeypatch):
    monkeypatch.setattr(os, 'geteuid', lambda: 0)
    monkeypatch.setattr(shutil, 'which', lambda tool: None if tool == 'tc' else '/sbin/ip')
    with pytest.raises(network.Unavailable, match=r'needs iproute2 \(tc not found\)'):
        network.check_available()


def test_a_refusal_is_one_line_and_exit_code_2(tmp_path):
    process = run(*TINY, stdout=subprocess.PIPE) if os.geteuid() else None
    if process is None:  # root, as in a container: without the tools
        environment = os.environ | {'PYTHONPATH': str(ROOT), 'PATH': str(tmp_path)}
        command = [sys.executable, '-m', 'benchmarks.cluster', *TINY]
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert errors.startswith('cluster: needs ') and errors.count('\n') == 1


# --- A small cluster ---


@pytest.mark.slow
def test_a_small_cluster_is_measured_and_removed(tmp_path):
    if not possible():
        pytest.skip('no root, no iproute2, or no network namespaces')
    process = run(*TINY, f'--output={tmp_path}', stdout=subprocess.PIPE)
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert not left_behind(process)
    found = json.loads((tmp_path / 'cluster.json').read_text())
    variants = found['models']['mlp_tiny']['jax']['variants']
    for name in ('dense', 'def64'):
        variant = variants[name]
        assert np.shape(variant['seconds']) == (2, 4) and variant['hlo']['all_reduces'] == 1
        expected = page.ring_bytes(variant['hlo']['bytes'], 2, variant['tx_packets'])
        # Beside the message gloo sends some hundred bytes of its own, whatever the message's size.
        assert expected <= variant['tx_bytes'] <= 1.02 * expected + 2000
    assert np.shape(variants['local_def64_m0_alone']['seconds']) == (2, 4)
    assert variants['compute']['hlo']['all_reduces'] == variants['local_def64']['hlo']['all_reduces'] == 0
    assert 'DEF, ratio 64' in out and '--model=mlp_tiny' in (tmp_path / 'cluster.md').read_text()


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_a_cluster_that_is_killed(number):
    if not possible():
        pytest.skip('no root, no iproute2, or no network namespaces')
    process = run(*TINY, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not left_behind(process) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1)  # its workers are starting
    assert left_behind(process) and process.poll() is None
    process.send_signal(number)
    process.communicate(timeout=60)
    while left_behind(process) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left_behind(process)
