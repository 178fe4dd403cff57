"""The benchmark of AdamW under DEF: its optimizer is def_adamw, and its runs can be repeated."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import def_jax
from benchmarks.adamw.settings import Setting, optimizer

RUNS = Path(__file__).parents[2] / 'results/benchmarks/adamw.jsonl'
ALIAS = Setting(lr=1e-3, b1=0.0, b2=0.995, steps=10, ratio=4, detach=0.2, outer_lr=0.3, outer_mu=0.8)


def test_the_optimizer_is_def_adamw():
    schedule = optax.warmup_cosine_decay_schedule(0.0, ALIAS.lr, 1, ALIAS.steps)
    alias = def_jax.def_adamw(schedule, 4, 'workers', weight_decay=0.1, mask={'b': False, 'w': True})
    params = {'b': jnp.ones(6), 'w': jnp.ones((8, 6))}
    targets = jax.tree.map(lambda x: np.random.default_rng(0).normal(size=(2, 5, *x.shape)), params)

    def train(optimizer):
        def step(carry, target):
            x, state = carry
            point = def_jax.detached_params(x, state)
            updates, after = optimizer.update(jax.tree.map(jnp.subtract, point, target), state, point)
            return (optax.apply_updates(x, updates), after), None

        def worker(targets):
            return jax.lax.scan(step, (params, optimizer.init(params)), targets)[0][0]

        return jax.jit(jax.vmap(worker, axis_name='workers'))(jax.tree.map(jnp.float32, targets))

    actual, expected = train(optimizer(ALIAS, ALIAS.lr)), train(alias)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), actual, expected)
    assert not np.allclose(actual['w'], 1.0)


def test_every_run_names_its_settings():
    settings = [Setting.of(json.loads(line)) for line in RUNS.read_text().splitlines()]
    assert len(set(settings)) == len(settings)
