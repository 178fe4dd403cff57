"""The loops of other people's trainers: few lines change, they learn, and the message alone crosses workers.

Each example ends with `check`, which raises if more than the message crosses workers.
"""

import importlib.util
import runpy
import subprocess
import sys
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


@pytest.mark.slow
@pytest.mark.parametrize('name', REACHES)
def test_it_learns(name):
    package, reached = REACHES[name]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f'{package} is not installed')
    # In a process of its own: Keras keeps the backend of its first import.
    program = f"import runpy; print(float(runpy.run_path('{EXAMPLES / name}.py')['main']()))"
    process = subprocess.run([sys.executable, '-c', program], check=True, capture_output=True, text=True)
    assert reached(float(process.stdout.split()[-1]))


# --- Under jax.pmap ---

# The steps of a short run, and what its result must exceed: an accuracy, minus a loss, a return.
TRAINERS = {
    'pmap_train_state': (100, 0.7),
    'pmap_language_model': (40, -3.6),
    'pmap_imagenet': (120, 0.5),
    'pmap_ppo': (15, -8),  # it begins at -18
}


@pytest.mark.slow
@pytest.mark.parametrize('name', TRAINERS)
def test_a_trainer_under_pmap_learns(name):
    pytest.importorskip('flax')
    num_steps, reached = TRAINERS[name]
    result = runpy.run_path(str(EXAMPLES / f'{name}.py'))['main'](num_steps)
    assert (-result if name == 'pmap_language_model' else result) > reached
