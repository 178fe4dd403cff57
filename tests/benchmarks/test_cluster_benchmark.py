"""The cluster benchmark: what it refuses, what it measures, and that nothing of it stays."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.cluster import network
from benchmarks.cluster.__main__ import main
from benchmarks.time_to_accuracy import worker as training

ROOT = Path(__file__).resolve().parents[2]
IMAGES = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), np.uint8)
TINY = ['--model=mlp_tiny', '--workers=2', '--rounds=2', '--steps=2', '--def_q=def_q64_2']


def run(module, *flags):
    """A benchmark, which must succeed; LLVM optimises little, since only what programs send counts here."""
    environment = os.environ | {'PYTHONPATH': str(ROOT), 'JAX_DISABLE_MOST_OPTIMIZATIONS': 'true'}
    command = [sys.executable, '-m', module, *flags]
    settings = {'cwd': ROOT, 'env': environment, 'capture_output': True, 'text': True, 'timeout': 900}
    done = subprocess.run(command, **settings)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope='module')
def namespaces_possible():
    """Skips where this machine does not let us make a network namespace."""
    if os.geteuid() != 0 or not (shutil.which('ip') and shutil.which('tc')):
        pytest.skip('no root, or no iproute2')
    if subprocess.run(['unshare', '--net', '--mount', 'true'], capture_output=True).returncode:
        pytest.skip('no network namespaces')


def test_what_pytorchs_workers_import_needs_no_jax():
    modules = 'cluster.timing', 'cluster.workloads'
    imports = '; '.join(f'import benchmarks.{module}' for module in modules)
    subprocess.run([sys.executable, '-c', f"import sys; sys.modules['jax'] = None; {imports}"], check=True)


def test_workers_divide_an_epoch_and_every_seed_has_its_order():
    def epoch(worker, seed=0):
        options = {'batch': 3, 'seed': seed, 'worker': worker, 'num_workers': 2}
        stream = training.batches(IMAGES, np.arange(24), **options)
        images, labels = zip(*(next(stream) for _ in range(4)), strict=True)
        return np.concatenate(images), np.concatenate(labels)

    images, labels = epoch(0)
    np.testing.assert_array_equal(np.sort([*labels, *epoch(1)[1]]), np.arange(24))
    np.testing.assert_array_equal(labels, epoch(0)[1])
    np.testing.assert_array_equal(images, epoch(0)[0])  # augmented alike
    assert (labels != epoch(0, seed=1)[1]).any()


# --- What is refused ---


@pytest.mark.parametrize(
    ('user', 'tools', 'message'),
    [(1000, ('ip', 'tc'), 'needs root'), (0, ('ip',), r'needs iproute2 \(tc not found\)')],
)
def test_what_is_missing_is_a_line_and_exit_code_2(monkeypatch, capsys, user, tools, message):
    monkeypatch.setattr(os, 'geteuid', lambda: user)
    monkeypatch.setattr(shutil, 'which', lambda tool: f'/sbin/{tool}' if tool in tools else None)
    with pytest.raises(network.Unavailable, match=message):
        network.check_available()
    assert main(None) == 2
    errors = capsys.readouterr().err
    assert errors.startswith('cluster: needs ') and errors.count('\n') == 1


# --- A small cluster ---


@pytest.mark.slow
@pytest.mark.usefixtures('namespaces_possible')
def test_a_small_cluster_is_measured_and_removed(tmp_path):
    run('benchmarks.cluster', *TINY, f'--output={tmp_path}')
    found = json.loads((tmp_path / 'cluster.json').read_text())
    variants = found['models']['mlp_tiny']['jax']['variants']
    exchanges = ['all-reduce'], ['all-reduce'], ['all-to-all', 'all-gather']
    for name, collectives in zip(('dense', 'def64', 'def_q64_2'), exchanges, strict=True):
        variant = variants[name]
        assert np.shape(variant['seconds']) == (2, 4) and variant['hlo']['collectives'] == collectives
        expected = variant['hlo']['wire_bytes'] + network.HEADERS * variant['tx_packets']
        # Beside the message gloo sends some hundred bytes of its own, whatever the message's size.
        assert expected <= variant['tx_bytes'] <= 1.02 * expected + 2000
    assert np.shape(variants['local_def64_alone']['seconds']) == (2, 4)
    assert all(variants[name]['hlo']['collectives'] == [] for name in ('compute', 'local_def_q64_2'))
    written = (tmp_path / 'cluster.md').read_text()
    assert 'DEF, 1/64' in written and '--model=mlp_tiny' in written


# --- Nodes that shard their model ---


@pytest.mark.slow
@pytest.mark.usefixtures('namespaces_possible')
def test_only_blocks_cross_between_the_nodes(tmp_path):
    """The bytes of the page are those that the programs send."""
    written = tmp_path / 'sharded.md'
    flags = ['--width=256', '--rounds=1', '--steps=1', '--bandwidth=1gbit', f'--output={written}']
    run('benchmarks.sharded', *flags)
    rows = {
        row[0]: row
        for row in (line.split(' | ') for line in re.findall(r'^\| (.*) \|$', written.read_text(), re.M))
    }
    size = 256 * 512 + 512 * 512 + 512 * 256
    dense, block = rows['FSDP inside, dense mean between'], rows['FSDP inside, DEF between, ratio 16']
    assert float(dense[4]) == pytest.approx(4 * size / 2 / 1e6, abs=0.01)  # two devices per node
    assert float(block[4]) == pytest.approx(float(dense[4]) / 16, abs=0.01)
    assert dense[5] == block[5]  # what FSDP exchanges within a node


# --- Nodes of several processes ---


@pytest.mark.slow
@pytest.mark.usefixtures('namespaces_possible')
def test_one_message_leaves_a_node_of_several_processes(tmp_path):
    """The kernel counts at a node's link what the program sends between nodes, and nothing of what stays."""
    flags = ['--node=2x1', '--hidden=256', '--bandwidth=1gbit', '--rounds=3', '--steps=2']
    run('benchmarks.nodes', *flags, f'--output={tmp_path}')
    (layout,) = json.loads((tmp_path / 'nodes.json').read_text())['layouts'].values()
    (size,) = layout['sizes']
    variants = size['rates']['1gbit']
    for variant in variants.values():
        body = variant['bytes'] - network.HEADERS * variant['packets']
        assert 0.98 * variant['leaving'] - 500 <= body <= 1.05 * variant['leaving'] + 4000
    assert variants['mean_inside']['leaving'] == variants['local_def_q']['leaving'] == 0
    least = size['message'] * 2 / 8
    assert least <= variants['def_q_inside']['leaving'] <= 1.1 * least
    assert variants['dense_nodes']['leaving'] == 4 * size['params']
