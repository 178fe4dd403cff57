"""The notebooks run from their first cell to their last, and are committed with what they show."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
EXECUTE = """
import sys, nbclient, nbformat
notebook = nbformat.read(sys.argv[1], 4)
nbclient.NotebookClient(
    notebook, timeout=900, startup_timeout=300, coalesce_streams=True, kernel_name='python3'
).execute()
nbformat.write(notebook, sys.argv[2])
"""
NOTEBOOKS = sorted((ROOT / 'notebooks').glob('*.ipynb'))


def shown(notebook):
    """What each code cell shows: the kinds of output and, the same on every machine, tables in Markdown."""
    return [
        [(output.output_type, output.get('data', {}).get('text/markdown')) for output in cell.outputs]
        for cell in notebook.cells
        if cell.cell_type == 'code'
    ]


@pytest.mark.slow
@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_was_committed(path, tmp_path):
    unset = ('JAX_NUM_CPU_DEVICES', 'JAX_PLATFORMS', 'JAX_COMPILATION_CACHE_DIR', 'XLA_FLAGS')
    # A kernel would print what it cannot read in a folder of compiled programs that others write to.
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment |= {'JUPYTER_CONFIG_DIR': str(tmp_path), 'IPYTHONDIR': str(tmp_path)}
    executed = tmp_path / path.name
    command = [sys.executable, '-c', EXECUTE, str(path), str(executed)]
    process = subprocess.run(command, cwd=path.parent, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-3000:]
    assert shown(nbformat.read(executed, 4)) == shown(nbformat.read(path, 4))
