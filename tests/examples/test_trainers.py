"""The examples learn: the library's own, the recipes, and the loops of other people's trainers.

Nearly all call `check`, which raises if more than the message crosses workers.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# The package that each needs, the argument of its `main`, and what its result must reach.
REACHES = {
    'mlp': ('jax', 300, lambda accuracy: accuracy > 0.9),
    'fsdp': ('jax', 60, lambda loss: loss < 3.0),  # nats a byte; a uniform guess has 5.5
    'linen_train_state': ('flax', 8, lambda accuracy: accuracy > 0.8),
    'nnx_mnist': ('flax', 8, lambda accuracy: accuracy > 0.85),
    'equinox_parallelism': ('equinox', 300, lambda loss: loss < 0.01),
    'keras_loop': ('keras', 7, lambda accuracy: accuracy > 0.9),
    'explicit_transformer': ('jax', '', lambda loss: loss < 2.6),
    'pmap_train_state': ('flax', 100, lambda accuracy: accuracy > 0.7),
    'pmap_language_model': ('flax', 20, lambda loss: loss < 3.6),
    'pmap_imagenet': ('flax', 120, lambda accuracy: accuracy > 0.5),
    'pmap_ppo': ('flax', 15, lambda reward: reward > -1),  # it begins at -2.5
    'recipes/accumulation': ('sklearn', 100, lambda loss: loss < 0.5),
    'recipes/bfloat16_params': ('sklearn', 200, lambda gain: gain > 0.2),  # over dense training, in loss
    'recipes/checkpoints': ('orbax', 60, lambda loss: loss < 0.6),  # of x, after steps of four workers
    'recipes/ema': ('sklearn', 200, lambda accuracy: accuracy > 0.9),
    'recipes/gan': ('jax', 1500, lambda distance: distance < 0.4),  # of the worst mode; 2 if it is lost
    'recipes/gradient_norm': ('sklearn', 150, lambda loss: loss < 0.6),
    'recipes/kauldron_train_step': ('kauldron', '', lambda accuracy: accuracy > 0.85),
    'recipes/lora': ('sklearn', 100, lambda loss: loss < 0.5),
    'recipes/muon': ('sklearn', 80, lambda loss: loss < 0.6),
    'recipes/scenic_train_step': ('flax', 200, lambda accuracy: accuracy > 0.85),
    'recipes/token_weights': ('jax', 150, lambda loss: loss < 1.5),  # a uniform guess has 2.1
}


@pytest.mark.slow
@pytest.mark.parametrize('name', REACHES)
def test_it_learns(name, environment):
    package, argument, reached = REACHES[name]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f'{package} is not installed')
    # As a program, without these tests' devices: an example chooses its own.
    program = Path(ROOT, 'examples', f'{name}.py').read_text()
    program = program.replace('    main()\n', f'    print(float(main({argument})))\n')
    command = [sys.executable, '-c', program]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    assert reached(float(done.stdout.split()[-1]))
