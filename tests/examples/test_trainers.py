"""The loops of other people's trainers: few lines change, they learn, and the message alone crosses workers.

Each example ends with `check`, which raises if more than the message crosses workers.
"""

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / 'examples'
# What each returns, an accuracy or a loss, and what it must reach.
REACHES = {
    'linen_train_state': ('flax', lambda accuracy: accuracy > 0.8),
    'nnx_mnist': ('flax', lambda accuracy: accuracy > 0.85),
    'equinox_parallelism': ('equinox', lambda loss: loss < 0.01),
    'keras_loop': ('keras', lambda accuracy: accuracy > 0.9),
    'explicit_transformer': ('jax', lambda loss: loss < 2.6),
}


@pytest.mark.parametrize('name', REACHES)
def test_at_most_eight_lines_change(name):
    changed = [line for line in (EXAMPLES / f'{name}.py').read_text().splitlines() if '# was: ' in line]
    assert 3 <= len(changed) <= 8


@pytest.mark.slow
@pytest.mark.parametrize('name', REACHES)
def test_it_learns(name, monkeypatch):
    package, reached = REACHES[name]
    monkeypatch.setenv('KERAS_BACKEND', 'jax')
    pytest.importorskip(package)
    assert reached(runpy.run_path(str(EXAMPLES / f'{name}.py'))['main']())
