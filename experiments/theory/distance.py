"""How far gradients are taken from y: EF's distance grows with M², DEF's does not; the best λ and Eq. 19's.

    python experiments/theory/distance.py

F(x) = ½ Σ h_i x_i² with h_i from μ to L = 1. The start sets M² = ‖∇F(x_0)‖², the largest on the way. Workers
add noise of variance σ² to the gradient. Measured is the mean over steps of Eq. 9,
mean_k ‖e_t - λe_k‖², in units of η²σ².
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import reporting

import def_jax
from def_jax import diagnostics

NUM_WORKERS, SIZE, SEEDS, RATE, STEPS, MU = 16, 64, 3, 0.002, 2000, 1e-3
RATIOS = (4, 64)
MOMENTS = 10.0 ** np.arange(-3, 3)  # M² / σ²


@functools.partial(jax.jit, static_argnames=('ratio',))
def distances(seed, moment, detach, *, ratio):
    """Eq. 9's mean over the steps of one run at `detach`, and the λ that would be best there; σ² = 1."""
    optimizer = def_jax.error_feedback(def_jax.baselines.random_k(ratio), 'workers', detach=0.0)
    curvature = jnp.geomspace(MU, 1.0, SIZE)
    keys = jax.random.split(jax.random.key(seed), NUM_WORKERS + 2)
    grad = jax.random.normal(keys[-1], (SIZE,))
    params = jnp.sqrt(moment) * grad / jnp.linalg.norm(grad) / curvature  # the minimum is at 0

    def init(_):
        state = optimizer.init(params)
        return params, state._replace(key=jax.random.key_data(keys[-2]), detach=detach)

    def step(state, t, key):
        params, opt_state = state
        grads = curvature * def_jax.detached_params(params, opt_state)
        grads += jax.random.normal(jax.random.fold_in(key, t), grads.shape) / SIZE**0.5
        updates, opt_state = optimizer.update(-RATE * grads, opt_state)
        opt_state = opt_state._replace(detach=detach)
        measured = diagnostics.error_statistics(opt_state, 'workers')
        numbers = jnp.stack([measured[name] for name in ('distance', 'mean_error', 'error')])
        return (optax.apply_updates(params, updates), opt_state), numbers

    step = jax.vmap(step, in_axes=(0, None, 0), axis_name='workers')

    def body(state, t):
        state, measured = step(state, t, keys[:-2])
        return state, measured[0]

    _, measured = jax.lax.scan(body, jax.vmap(init)(jnp.arange(NUM_WORKERS)), jnp.arange(STEPS))
    distance, mean_error, error = measured.mean(0)
    return distance / RATE**2, mean_error / error


def equation_19(moment):
    return (1 / NUM_WORKERS + 2 * moment) / (1 + 2 * moment)


def with_ages(moment, ratio):
    """Eq. 19's λ with (2 - δ)/δ in place of 2.

    A coordinate's error holds τ gradients, with P(τ) = δ(1-δ)^τ. Steady gradients add up to τM, noise to
    √τ σ, and E τ² / E τ = (2 - δ)/δ.
    """
    weight = (2 - 1 / ratio) * ratio
    return (1 / NUM_WORKERS + weight * moment) / (1 + weight * moment)


def main():
    figure, axes = reporting.panels(2)
    rows = []
    for ratio, style in zip(RATIOS, ('--', '-'), strict=True):
        run = jax.vmap(functools.partial(distances, ratio=ratio), in_axes=(0, None, None))
        curves = {'EF': [], 'λ of Eq. 19': [], 'λ = 1': [], 'best': []}
        for moment in MOMENTS:
            for name, detach in {'EF': 0.0, 'λ of Eq. 19': equation_19(moment), 'λ = 1': 1.0}.items():
                measured, best = map(np.asarray, run(np.arange(SEEDS), moment, detach))
                curves[name].append(measured)
            curves['best'].append(best)  # hardly depends on the λ of the run
            rows.append(
                [ratio, f'{moment:g}']
                + [reporting.mean_std(curves[name][-1]) for name in ('EF', 'λ of Eq. 19', 'λ = 1')]
                + [f'{equation_19(moment):.3f}', f'{with_ages(moment, ratio):.3f}', reporting.mean_std(best)]
            )
        for name, color in (('EF', reporting.EF), ('λ of Eq. 19', reporting.Y), ('λ = 1', reporting.X)):
            reporting.band(
                axes[0], MOMENTS, curves[name], f'{name}, ratio {ratio}', color=color, linestyle=style
            )
        reporting.band(
            axes[1],
            MOMENTS,
            curves['best'],
            f'measured best, ratio {ratio}',
            color=reporting.Y,
            linestyle=style,
        )
        ages = [with_ages(moment, ratio) for moment in MOMENTS]
        axes[1].plot(MOMENTS, ages, 'x', color='gray', label='with ages' if ratio == RATIOS[-1] else None)
    axes[1].plot(MOMENTS, equation_19(MOMENTS), color=reporting.BOUND, label='Eq. 19')
    axes[0].set(xscale='log', yscale='log', xlabel='M² / σ²', ylabel='distance to y (Eq. 9) / η²σ²')
    axes[1].set(xscale='log', xlabel='M² / σ²', ylabel='λ')
    for each in axes:
        each.legend(fontsize='xx-small')
    header = ['ratio', 'M²/σ²', 'EF', 'λ of Eq. 19', 'λ = 1', 'Eq. 19', 'with ages', 'best λ']
    setting = {
        'workers': NUM_WORKERS,
        'size': SIZE,
        'learning_rate': RATE,
        'steps': STEPS,
        'mu': MU,
        'L': 1.0,
    }
    reporting.publish('distance', figure, header, rows, seeds=SEEDS, **setting)


if __name__ == '__main__':
    main()
