"""The benchmark of nodes that shard their model: the bytes of its page are those that the programs send."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_cluster_benchmark import possible

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_only_blocks_cross_between_the_nodes(tmp_path):
    if not possible():
        pytest.skip('needs root, iproute2 and network namespaces')
    page = tmp_path / 'sharded.md'
    flags = ['--width=256', '--rounds=1', '--steps=1', '--bandwidth=1gbit', f'--output={page}']
    done = subprocess.run(
        [sys.executable, '-m', 'benchmarks.sharded', *flags], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    rows = {
        row[0]: row
        for row in (line.split(' | ') for line in re.findall(r'^\| (.*) \|$', page.read_text(), re.M))
    }
    size = 256 * 512 + 512 * 512 + 512 * 256
    dense, block = rows['FSDP inside, dense mean between'], rows['FSDP inside, DEF between, ratio 16']
    assert float(dense[4]) == pytest.approx(4 * size / 2 / 1e6, abs=0.01)  # two devices per node
    assert float(block[4]) == pytest.approx(float(dense[4]) / 16, abs=0.01)
    assert dense[5] == block[5]  # what FSDP exchanges within a node
