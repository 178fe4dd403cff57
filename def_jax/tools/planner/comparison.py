"""The methods that the plan compares: what each sends, how long a step takes, and what a device holds."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from def_jax.ground.arguments import check_choice, check_integer
from def_jax.tools import markdown
from def_jax.tools.planner import Plan

__all__ = ['OPTIMIZERS', 'Optimizer', 'Prediction', 'compare', 'milliseconds', 'table', 'times']

Optimizer = Literal['sgd', 'adamw']
OPTIMIZERS = {'sgd': 'momentum SGD', 'adamw': 'AdamW'}
COMPRESSIONS = (16, 64, 256)  # of DEF-Q: float32 bytes over those of a message
KNOWN = 64  # where small transformers, too, ended near AdamW
CAREFUL = 10e6  # from so many parameters on, transformers take the smallest compression
# Copies of the model in float32 during a step: parameters, gradients and the optimizer's state, of which
# error feedback has the residual and, with `outer`, its momentum; and the point where gradients are taken,
# unless that is the parameters.
COPIES = {
    'dense': {'sgd': 3, 'adamw': 4},
    'DEF-Q': {'sgd': 4, 'adamw': 6},
    'DiLoCo': {'sgd': 6, 'adamw': 7},
    'PowerSGD': {'sgd': 4, 'adamw': 5},
}
ALONE = 'one worker alone'
_FRAGMENTS = 10  # of Streaming DiLoCo
_POINT = "take gradients at `def_jax.detached_params(params, opt_state)`, and don't average them"
_SPMD = "`def_jax.spmd(optimizer, mesh, specs, 'workers')`"
_PLAIN = "take gradients at the parameters, and don't average them"


class Prediction(NamedTuple):
    """A method and its prediction."""

    family: str
    setting: str
    sent: float  # bytes that a worker sends in a step, on average
    seconds: float  # of a step, on average
    memory: float  # bytes that a device holds, without activations
    paste: str  # the line that makes the optimizer, or two
    then: str  # what else changes
    compression: int = 0  # of DEF-Q

    @property
    def name(self) -> str:
        return f'{self.family}, {self.setting}'


def compare(plan: Plan, local_steps: int = 50, optimizer: Optimizer | None = None) -> list[Prediction]:
    """Dense training first, then DEF-Q, DiLoCo, Streaming DiLoCo and PowerSGD, as their papers have them.

    Where several GPUs share a link, they are one worker (`inside`, or FSDP), and dense training is
    hierarchical: a reduce-scatter behind the link, an all-reduce of each part, an all-gather. Dense training
    in one ring, or with FSDP over all GPUs, and DEF-Q with each GPU as a worker come after these. So does
    dense training in bfloat16, if the plan's is wider, and one worker alone that computes the shares of all,
    if that is faster than one of the others.

    Args:
        plan: the cluster and the model.
        local_steps: H, DiLoCo's steps between two averages of everything.
        optimizer: what the model is trained with, which the lines to paste follow; None shows both, and
            counts AdamW's memory.

    Raises:
        ValueError: if `local_steps` is no positive integer, or there is no such optimizer.

    >>> plan = Plan(params=25.6e6, step_time=0.12, bandwidth=10e9, workers=64)
    >>> [f'{method.name}: {1e3 * method.seconds:.0f} ms' for method in compare(plan)][:3]
    ['dense, bfloat16: 207 ms', 'DEF-Q, compression 16: 136 ms', 'DEF-Q, compression 64: 129 ms']
    >>> nodes = Plan(params=25.6e6, step_time=0.12, bandwidth=10e9, workers=8, gpus_per_link=8)
    >>> [f'{method.name}: {1e3 * method.seconds:.0f} ms' for method in compare(nodes)][2:4]
    ['DEF-Q, compression 16, inside=8: 130 ms', 'DEF-Q, compression 64, inside=8: 123 ms']
    """
    check_integer('local_steps', local_steps, 1, 'steps of DiLoCo between two averages')
    if optimizer is not None:
        check_choice('optimizer', optimizer, OPTIMIZERS | {'adamw': 'AdamW, or Adam with weight_decay=0'})
    dense = _dense(plan, optimizer)
    others = [*_def_q(plan, optimizer), *_local(plan, local_steps, optimizer)]
    others += [] if plan.fsdp else [_powersgd(plan, optimizer)]
    seconds, memory = plan.workers * plan.step_time, dense[0].memory
    if seconds < max(each.seconds for each in [*dense, *others]):
        dense.append(Prediction(ALONE, 'the same batch', 0.0, seconds, memory, '', ''))
    return [*dense, *others]


def _memory(plan: Plan, family: str, optimizer: str | None, shards: int | None = None) -> float:
    """Bytes a device holds, if the model is divided among `shards`; by default, as the plan says."""
    shards = shards or (plan.gpus_per_link if plan.fsdp else 1)
    return 4 * COPIES[family][optimizer or 'adamw'] * plan.params / shards


def _dense(plan: Plan, optimizer: str | None) -> list[Prediction]:
    shown = {2: 'bfloat16', 4: 'float32'}.get(plan.dense_bytes, f'{plan.dense_bytes} bytes')
    size = plan.dense_bytes * plan.params

    def at(how: str, sent: float, seconds: float, shards: int | None = None) -> Prediction:
        memory = _memory(plan, 'dense', optimizer, shards)
        return Prediction('dense', f'{shown}{how}', sent, seconds, memory, '', '')

    inside = ', FSDP inside' if plan.fsdp else ', hierarchical'
    found = [at(inside if plan.gpus_per_link > 1 else '', plan.ring(size), plan.dense_step())]
    if plan.fsdp:
        sent, everything = 1.5 * plan.ring(size, flat=True), plan.workers * plan.gpus_per_link
        found.append(at(', FSDP over all', sent, plan.sharded_step(), everything))
    elif plan.gpus_per_link > 1:
        found.append(at(', one ring', plan.ring(size, flat=True), plan.dense_step(flat=True)))
    narrow = dataclasses.replace(plan, dense_bytes=2)
    return found if plan.dense_bytes <= 2 else [*found, *_dense(narrow, optimizer)]


def _def_q(plan: Plan, optimizer: str | None) -> list[Prediction]:
    more = ', overlap=True' if plan.in_flight else ''
    memory = _memory(plan, 'DEF-Q', optimizer)

    def at(ratio: int, how: str, options: str, then: str, flat: bool = False) -> Prediction:
        def line(name: str) -> str:
            used = COMPRESSIONS[0] if name == 'adamw' and plan.params >= CAREFUL else ratio
            return f"def_jax.def_{name}(rate, {used}, 'workers'{options}{more})"

        lines = _lines(optimizer, line)
        sent, seconds = plan.halves(4 * plan.params / ratio, flat), plan.step(ratio, flat)
        return Prediction('DEF-Q', f'compression {ratio}{how}', sent, seconds, memory, lines, then, ratio)

    how = ', FSDP inside' if plan.fsdp else _inside(plan)
    found = [at(ratio, how, _inside(plan), _changes(plan)) for ratio in COMPRESSIONS]
    if plan.gpus_per_link > 1 and not plan.fsdp:
        found.append(at(KNOWN, ', a GPU a worker', '', _POINT, flat=True))
    return found


def _inside(plan: Plan) -> str:
    """The argument with which the GPUs of a link, each with the whole model, are one worker."""
    return f', inside={plan.gpus_per_link}' if plan.gpus_per_link > 1 and not plan.fsdp else ''


def _changes(plan: Plan) -> str:
    if plan.fsdp:
        return f'use {_SPMD} on a mesh whose other axis shards the parameters (docs: two racks)'
    if plan.gpus_per_link > 1:
        return (
            f'{_POINT}: under `jax.pmap`, {plan.gpus_per_link} neighbours are one worker. Under `jax.jit`, '
            "leave `inside` out and use `def_jax.spmd(optimizer, mesh, jax.P(), 'workers')`"
        )
    return f'{_POINT}. With several devices a worker, use {_SPMD} instead (docs: two racks)'


def _local(plan: Plan, local_steps: int, optimizer: str | None) -> list[Prediction]:
    """DiLoCo in float32, and Streaming DiLoCo, whose messages travel in 4 bits while workers compute."""
    seconds = plan.all_reduce(plan.params) / local_steps
    every = max(1, local_steps // _FRAGMENTS)
    # A fragment travels while one gradient is computed.
    fragment = plan.all_reduce(plan.params * every / local_steps, 0.5)
    streaming = ((every - 1) * plan.step_time + max(plan.step_time, fragment)) / every
    inner = _optax(optimizer or 'adamw')

    def line(blocks: str, every: int, more: str = '') -> str:
        return (
            'outer = optax.sgd(0.7, momentum=0.9, nesterov=True)\n'
            f"optimizer = def_jax.error_feedback(def_jax.{blocks}, 'workers', inner={inner}{_inside(plan)},\n"
            f'    detach=1.0, every={every}, outer=outer{more})'
        )

    streamed = line(f"random_block({local_steps / every:g}, order='cyclic')", every, ', bits=4, overlap=True')
    averaged = line('identity()', local_steps)
    setting, sent, then = f'H = {local_steps}', plan.ring(4 * plan.params) / local_steps, _changes(plan)
    hidden = f'{setting}, 4 bits, {"hidden" if streaming <= plan.step_time else "partly hidden"}'
    memory = _memory(plan, 'DiLoCo', optimizer)
    return [
        Prediction('DiLoCo', setting, sent, plan.step_time + seconds, memory, averaged, then),
        Prediction('Streaming DiLoCo', hidden, sent / 8, streaming, memory, streamed, then),
    ]


def _powersgd(plan: Plan, optimizer: str | None) -> Prediction:
    """Two all-reduces, one after the other, of all GPUs; what it computes is left out."""
    ratio = 64
    seconds = plan.step_time + 2 * plan.all_reduce(plan.params / ratio / 2, flat=True)
    setting = f'the size of DEF-Q at {ratio}'
    link = f"def_jax.baselines.powersgd({ratio}, 'workers')"
    lines = _lines(optimizer, lambda name: f'optax.chain({link}, {_optax(name)})')
    sent = plan.ring(4 * plan.params / ratio, flat=True)
    return Prediction('PowerSGD', setting, sent, seconds, _memory(plan, 'PowerSGD', optimizer), lines, _PLAIN)


def _optax(optimizer: str) -> str:
    return f'optax.{optimizer}(rate{", momentum=0.9" if optimizer == "sgd" else ""})'


def _lines(optimizer: str | None, made: Callable[[str], str]) -> str:
    """The line of the optimizer, or of each, so that nobody pastes the other's."""
    if optimizer:
        return f'optimizer = {made(optimizer)}'
    return '\n'.join(f'optimizer = {made(name)}  # for {title}' for name, title in OPTIMIZERS.items())


def table(plan: Plan, methods: Sequence[Prediction]) -> str:
    """The comparison as a Markdown table."""
    rows = [['', 'MB sent a step', 'step, ms', 'communication, ms', 'times as fast', 'GB a device']]
    for each in methods:
        rest = milliseconds(max(0.0, each.seconds - plan.step_time) if each.sent else 0.0)
        speed_up = times(methods[0].seconds / each.seconds)
        shown = milliseconds(each.seconds), rest, speed_up
        rows.append([each.name, _short(each.sent / 1e6), *shown, _short(each.memory / 1e9)])
    return markdown.table(rows)


def milliseconds(seconds: float) -> str:
    """In about three digits: predictions are no more exact."""
    return _short(1e3 * seconds)


def times(speed_up: float) -> str:
    return f'{speed_up:.2f}' if speed_up < 10 else f'{speed_up:.0f}'


def _short(number: float) -> str:
    return f'{number:,.0f}' if number >= 100 else f'{number:.3g}'
