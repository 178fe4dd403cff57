"""The methods that the plan compares, and which of them to start with."""

from collections.abc import Sequence
from typing import NamedTuple

from def_jax.checks import check_integer
from def_jax.tools import markdown
from def_jax.tools.plan import Plan

__all__ = ['Method', 'advice', 'compare', 'table']

COMPRESSIONS = (64, 256)  # of DEF-Q: float32 bytes over those of a message
_WORTH = 1.05  # a smaller speed-up is not worth the change
_NEAR = 0.9  # of the best speed-up is enough for the smaller compression
_SMALL = '. Transformers ended behind dense AdamW at 256: where 64 is fast enough, take it'
_DIFF = "; take gradients at def_jax.detached_params(params, opt_state), and don't average them"


class Method(NamedTuple):
    """A method and its prediction."""

    name: str
    sent: float  # bytes that a worker sends in a step, on average
    seconds: float  # of a step, on average
    paste: str  # the line that makes the optimizer
    then: str  # what else changes


def compare(plan: Plan, local_steps: int = 50) -> list[Method]:
    """Dense training first, then DEF-Q, DiLoCo and PowerSGD.

    Args:
        plan: the cluster and the model.
        local_steps: H, DiLoCo's steps between two averages of everything.

    Raises:
        ValueError: if `local_steps` is no positive integer.

    >>> plan = Plan(params=25.6e6, step_time=0.12, bandwidth=10e9, workers=64)
    >>> [f'{method.name}: {1e3 * method.seconds:.0f} ms' for method in compare(plan)][:3]
    ['dense, bfloat16: 207 ms', 'DEF-Q, compression 64: 129 ms', 'DEF-Q, compression 256: 127 ms']
    """
    check_integer('local_steps', local_steps, 1, 'steps of DiLoCo between two averages')
    whole = 4 * plan.params
    shown = {2: 'bfloat16', 4: 'float32'}.get(plan.dense_bytes, f'{plan.dense_bytes} bytes')
    dense = _method(plan, f'dense, {shown}', plan.dense_bytes * plan.params, plan.dense_step())
    outer = 'optax.sgd(0.7, momentum=0.9, nesterov=True)'
    sparse = [
        _method(
            plan,
            f'DEF-Q, compression {ratio}',
            whole / ratio,
            plan.step(ratio),
            f"optimizer = def_jax.def_sgd(learning_rate, {ratio}, 'workers')  # or def_adamw",
            _DIFF + (_SMALL if ratio > COMPRESSIONS[0] else ''),
        )
        for ratio in COMPRESSIONS
    ]
    diloco = _method(
        plan,
        f'DiLoCo, H = {local_steps}',
        whole / local_steps,
        plan.step_time + plan.all_reduce(plan.params) / local_steps,
        "optimizer = def_jax.error_feedback(def_jax.identity(), 'workers', inner=optax.adamw(learning_rate), "
        f'detach=1.0, every={local_steps}, outer={outer})',
        _DIFF,
    )
    ratio = COMPRESSIONS[0]  # two all-reduces, one after the other; what it computes is left out
    powersgd = _method(
        plan,
        f'PowerSGD, the size of DEF-Q at {ratio}',
        whole / ratio,
        plan.step_time + 2 * plan.all_reduce(plan.params / ratio / 2),
        f"optimizer = optax.chain(def_jax.baselines.powersgd({ratio}, 'workers'), optax.sgd(learning_rate))",
        "; take gradients at the parameters, and don't average them",
    )
    return [dense, *sparse, diloco, powersgd]


def _method(plan: Plan, name: str, size: float, seconds: float, paste: str = '', then: str = '') -> Method:
    return Method(name, 2 * (plan.workers - 1) / plan.workers * size, seconds, paste, then)


def table(plan: Plan, methods: Sequence[Method]) -> str:
    """The comparison as a Markdown table."""
    rows = [['', 'MB sent a step', 'step, ms', 'communication, ms', 'times as fast']]
    for each in methods:
        rest, speed_up = 1e3 * (each.seconds - plan.step_time), methods[0].seconds / each.seconds
        megabytes = each.sent / 1e6
        sent = f'{megabytes:,.0f}' if megabytes >= 100 else f'{megabytes:.3g}'
        cells = sent, f'{1e3 * each.seconds:.2f}', f'{rest:.2f}', f'{speed_up:.2f}'
        rows.append([each.name, *cells])
    return markdown.table(rows)


def advice(plan: Plan, methods: Sequence[Method]) -> str:
    """The method to start with, why, and the line to paste.

    Dense training wherever nothing is clearly faster. Otherwise DEF-Q at the smallest compression that has
    nearly the best speed; another method only if it is clearly faster than DEF-Q, as where latency dominates.
    """
    dense, *others = methods
    best = min(others, key=lambda method: method.seconds)
    share = 100 * (1 - plan.step_time / dense.seconds)
    if dense.seconds < _WORTH * best.seconds:
        return (
            f'Dense is best: communication is {share:.0f} % of its step, and no method here is more than '
            f'{max(1.0, dense.seconds / best.seconds):.2f} times as fast. Change nothing.'
        )
    chosen = next((method for method in others if _NEAR * method.seconds <= best.seconds), best)
    near = [m.name for m in others if m is not chosen and _NEAR * m.seconds <= best.seconds]
    also = f' As fast within a tenth, so no reason to change from it: {"; ".join(near)}.' if near else ''
    return (
        f'Start with {chosen.name}: {dense.seconds / chosen.seconds:.2f} times as fast as {dense.name}, '
        f'whose communication is {share:.0f} % of a step.{also}\n\n    {chosen.paste}\n\n'
        f'Paste it{chosen.then}.\nThese are times, not accuracies: compare both on your model.'
    )
