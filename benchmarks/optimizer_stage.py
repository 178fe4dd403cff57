"""Cost of the optimizer stage: DEF's chain against plain momentum SGD, side by side in one process.

    python -m benchmarks.optimizer_stage --output=results/benchmarks/optimizer_stage.md

One device, VGG-16's parameters, gradients given. Every variant runs `optimizer.update` and
`optax.apply_updates` with donated state, in turn with all others, so that a drift of the machine's speed
touches all alike; a figure is the median of the rounds after warm-up, and what counts is its ratio to SGD.
"""

import platform
import re
import subprocess
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

import def_jax
from def_jax.models import get_model

_OUTPUT = flags.DEFINE_string('output', None, 'Markdown file for the table; only printed if not given.')
_ROUNDS = flags.DEFINE_integer('rounds', 60, 'Times that every variant is run.', lower_bound=10)


def variants() -> dict[str, optax.GradientTransformation]:
    """The optimizers that are compared, by the name of their row."""

    def compressed(compressor, **options):
        sgd = optax.sgd(0.1, momentum=0.9)
        return optax.chain(sgd, def_jax.error_feedback(compressor, axis_name=None, **options))

    return {
        'momentum SGD': optax.sgd(0.1, momentum=0.9),
        'DEF, block of 1/64': compressed(def_jax.random_block(64)),
        'DEF, block of 1/1024': compressed(def_jax.random_block(1024)),
        'DEF, 1/64, shuffled': compressed(def_jax.random_block(64, order='shuffled')),
        "DEF, 1/64, detach='auto'": compressed(def_jax.random_block(64), detach='auto'),
        'DEF, 1/64, bfloat16': compressed(def_jax.random_block(64), wire_dtype=jnp.bfloat16),
        'DEF, 1/64, skip_nonfinite': compressed(def_jax.random_block(64), skip_nonfinite=True),
        'DEF, 1/100 (blocks wrap around)': compressed(def_jax.random_block(100)),
        'DEF, 1/64, one block of the model': compressed(def_jax.random_block(64, granularity='model')),
        'DEF, random 1/64 of the elements': compressed(def_jax.random_k(64)),
    }


class Stage:
    """One compiled variant and its state."""

    def __init__(self, optimizer: optax.GradientTransformation, params, grads):
        def stage(params, opt_state, grads):
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state

        self._state = jax.tree.map(jnp.copy, params), optimizer.init(params)
        self._grads = grads
        self.compiled = jax.jit(stage, donate_argnums=(0, 1)).lower(*self._state, grads).compile()
        self.seconds: list[float] = []

    def run(self) -> None:
        start = time.perf_counter()
        self._state = jax.block_until_ready(self.compiled(*self._state, self._grads))
        self.seconds.append(time.perf_counter() - start)

    @property
    def median(self) -> float:
        return float(np.median(self.seconds[len(self.seconds) // 10 :]))

    def full_size_copies(self, smallest: int) -> int:
        """Copy instructions of float arrays of at least `smallest` elements in the compiled program."""
        shapes = re.findall(r'= f32\[([\d,]*)\]\S* copy\(', self.compiled.as_text())
        return sum(np.prod([int(n) for n in shape.split(',') if n]) >= smallest for shape in shapes)


def main(_) -> None:
    model = get_model('vgg16', num_classes=10)
    images = jnp.zeros((1, 32, 32, 3))
    params = jax.jit(lambda key: model.init(key, images, train=False)['params'])(jax.random.key(0))
    grads = jax.tree.map(lambda x: 0.01 * x, params)
    stages = {name: Stage(optimizer, params, grads) for name, optimizer in variants().items()}
    for _ in range(_ROUNDS.value):
        for stage in stages.values():
            stage.run()

    base = stages['momentum SGD'].median
    rows = [
        '| variant | ms | ratio to momentum SGD | copies of a large tensor | temporary MB |',
        '|---|---|---|---|---|',
    ]
    for name, stage in stages.items():
        temporary = stage.compiled.memory_analysis().temp_size_in_bytes / 1e6
        copies = stage.full_size_copies(smallest=100_000)
        rows.append(
            f'| {name} | {1e3 * stage.median:.2f} | {stage.median / base:.2f} | {copies} | {temporary:.1f} |'
        )
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    head = (
        f'VGG-16, {size:,} parameters; {jax.devices()[0].device_kind}, {platform.machine()}; '
        f'jax {jax.__version__}; median of {_ROUNDS.value} rounds; commit {_commit()}'
    )
    text = '\n'.join([head, '', *rows, ''])
    print(text)
    if _OUTPUT.value:
        path = Path(_OUTPUT.value)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'`python -m benchmarks.optimizer_stage --output={_OUTPUT.value}`\n\n{text}')


def _commit() -> str:
    git = subprocess.run(['git', 'rev-parse', '--short', 'HEAD'], capture_output=True, text=True)
    return git.stdout.strip() or 'unknown'


if __name__ == '__main__':
    app.run(main)
