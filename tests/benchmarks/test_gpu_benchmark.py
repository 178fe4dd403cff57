"""The benchmark for accelerators, on a CPU at a tiny size, so that it works the first time on a GPU."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(tmp_path, *flags):
    command = [sys.executable, '-m', 'benchmarks.gpu', '--size=tiny', f'--output={tmp_path}/gpu.md', *flags]
    environment = os.environ | {
        'PYTHONPATH': str(ROOT),
        'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': '--xla_backend_optimization_level=0',  # compilation is most of the time
    }
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return (tmp_path / 'gpu.md').read_text()


@pytest.mark.slow
def test_every_table_is_measured_and_the_device_named(tmp_path):
    page = run(tmp_path, '--seconds=0.3', '--rounds=3')
    assert re.search(r'^CPU: .*jax [\d.]+', page, re.MULTILINE)
    for title in ('Steps a second', 'Virtual workers', 'Optimizer stage', 'Compile time'):
        assert f'\n## {title}' in page
    rows = [line for line in page.splitlines() if line.startswith('| ') and '---' not in line]
    assert len(rows) > 20 and not any('nan' in row or 'inf ' in row for row in rows)
    assert 'no time was left' not in page.lower()


def test_nothing_is_begun_after_the_last_minute(tmp_path):
    page = run(tmp_path, '--minutes=0')
    assert page.count('No time was left for: ') == 4
