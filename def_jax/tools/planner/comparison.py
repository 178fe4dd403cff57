"""The methods that the plan compares, and which of them to start with."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from def_jax.ground.arguments import check_choice, check_integer
from def_jax.tools import markdown
from def_jax.tools.planner import Plan

__all__ = ['OPTIMIZERS', 'Prediction', 'advice', 'compare', 'table']

OPTIMIZERS = {'sgd': 'momentum SGD', 'adamw': 'AdamW'}
COMPRESSIONS = (16, 64, 256)  # of DEF-Q: float32 bytes over those of a message
_KNOWN = 64  # where transformers, too, ended near AdamW
_WORTH = 1.05  # a smaller speed-up is not worth the change
_NEAR = 0.9  # of the best speed-up is enough for a method that comes before it
# The largest models that were trained with a method, in parameters: WRN-28-10 with DEF, by its authors;
# DiLoCo (Charles et al., 2025) and Streaming DiLoCo (Douillard et al., 2025); PowerSGD (Ramesh et al., 2021).
_TRAINED = {'DEF-Q': 36.5e6, 'DiLoCo': 10e9, 'Streaming DiLoCo': 1e9, 'PowerSGD': 12e9}
_DEF_Q_ITSELF = 10.7e6  # here
_REACH = 3  # times as large a model may be without a warning
_FRAGMENTS = 10  # of Streaming DiLoCo
_POINT = "take gradients at def_jax.detached_params(params, opt_state), and don't average them"
_SPMD = "def_jax.spmd(optimizer, mesh, specs, 'workers')"
_PLAIN = "take gradients at the parameters, and don't average them"


class Prediction(NamedTuple):
    """A method and its prediction."""

    family: str
    setting: str
    sent: float  # bytes that a worker sends in a step, on average
    seconds: float  # of a step, on average
    paste: str  # the line that makes the optimizer, or two
    then: str  # what else changes
    compression: int = 0  # of DEF-Q

    @property
    def name(self) -> str:
        return f'{self.family}, {self.setting}'


def compare(
    plan: Plan, local_steps: int = 50, optimizer: Literal['sgd', 'adamw'] | None = None
) -> list[Prediction]:
    """Dense training first, then DEF-Q, DiLoCo, Streaming DiLoCo and PowerSGD, as their papers have them.

    Where several GPUs share a link, they are one worker (`inside`, FSDP), and dense training is hierarchical:
    a reduce-scatter behind the link, an all-reduce of each part, an all-gather. In one ring, and with each
    GPU as a worker, dense training and DEF-Q come after these.

    Args:
        plan: the cluster and the model.
        local_steps: H, DiLoCo's steps between two averages of everything.
        optimizer: what the model is trained with, which the lines to paste follow; None shows both.

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
        check_choice('optimizer', optimizer, OPTIMIZERS)
    return [
        *_dense(plan),
        *_def_q(plan, optimizer),
        *_local(plan, local_steps, optimizer),
        _powersgd(plan, optimizer),
    ]


def _dense(plan: Plan) -> list[Prediction]:
    shown = {2: 'bfloat16', 4: 'float32'}.get(plan.dense_bytes, f'{plan.dense_bytes} bytes')
    size = plan.dense_bytes * plan.params
    if plan.gpus_per_link == 1:
        return [Prediction('dense', shown, plan.ring(size), plan.dense_step(), '', '')]
    return [
        Prediction('dense', f'{shown}, {how}', plan.ring(size, flat), plan.dense_step(flat), '', '')
        for how, flat in (('hierarchical', False), ('one ring', True))
    ]


def _def_q(plan: Plan, optimizer: str | None) -> list[Prediction]:
    more = ', overlap=True' if plan.in_flight else ''

    def at(ratio: int, how: str, options: str, then: str, flat: bool = False) -> Prediction:
        lines = _lines(optimizer, lambda name: f"def_jax.def_{name}(rate, {ratio}, 'workers'{options}{more})")
        sent, seconds = plan.halves(4 * plan.params / ratio, flat), plan.step(ratio, flat)
        return Prediction('DEF-Q', f'compression {ratio}{how}', sent, seconds, lines, then, ratio)

    found = [at(ratio, _inside(plan), _inside(plan), _changes(plan)) for ratio in COMPRESSIONS]
    if plan.gpus_per_link > 1:
        fsdp = f'use {_SPMD} on a mesh whose other axis shards the parameters (docs: two racks)'
        found += [
            at(_KNOWN, ', FSDP inside', '', fsdp),
            at(_KNOWN, ', a GPU a worker', '', _POINT, flat=True),
        ]
    return found


def _inside(plan: Plan) -> str:
    """The argument with which the GPUs of a link are one worker."""
    return f', inside={plan.gpus_per_link}' if plan.gpus_per_link > 1 else ''


def _changes(plan: Plan) -> str:
    if plan.gpus_per_link > 1:
        return f'{_POINT}: under jax.pmap, {plan.gpus_per_link} neighbours are one worker'
    return f'{_POINT}. With several devices a worker, use {_SPMD} instead (docs: two racks)'


def _local(plan: Plan, local_steps: int, optimizer: str | None) -> list[Prediction]:
    """DiLoCo in float32, and Streaming DiLoCo, whose messages travel in 4 bits while workers compute."""
    outer = 'optax.sgd(0.7, momentum=0.9, nesterov=True)'
    seconds = plan.all_reduce(plan.params) / local_steps
    every = max(1, local_steps // _FRAGMENTS)
    # A fragment travels while one gradient is computed.
    fragment = plan.all_reduce(plan.params * every / local_steps, 0.5)
    streaming = ((every - 1) * plan.step_time + max(plan.step_time, fragment)) / every
    inner = _optax(optimizer or 'adamw')

    def line(blocks: str, every: int, more: str = '') -> str:
        return (
            f"optimizer = def_jax.error_feedback(def_jax.{blocks}, 'workers', inner={inner}{_inside(plan)}, "
            f'detach=1.0, every={every}, outer={outer}{more})'
        )

    streamed = line(f"random_block({local_steps / every:g}, order='cyclic')", every, ', bits=4, overlap=True')
    averaged = line('identity()', local_steps)
    setting, sent, then = f'H = {local_steps}', plan.ring(4 * plan.params) / local_steps, _changes(plan)
    hidden = f'{setting}, 4 bits, hidden'
    return [
        Prediction('DiLoCo', setting, sent, plan.step_time + seconds, averaged, then),
        Prediction('Streaming DiLoCo', hidden, sent / 8, streaming, streamed, then),
    ]


def _powersgd(plan: Plan, optimizer: str | None) -> Prediction:
    """Two all-reduces, one after the other, of all GPUs; what it computes is left out."""
    ratio = 64
    seconds = plan.step_time + 2 * plan.all_reduce(plan.params / ratio / 2, flat=True)
    setting = f'the size of DEF-Q at {ratio} (not with FSDP inside a worker)'
    link = f"def_jax.baselines.powersgd({ratio}, 'workers')"
    lines = _lines(optimizer, lambda name: f'optax.chain({link}, {_optax(name)})')
    sent = plan.ring(4 * plan.params / ratio, flat=True)
    return Prediction('PowerSGD', setting, sent, seconds, lines, _PLAIN)


def _optax(optimizer: str) -> str:
    return f'optax.{optimizer}(rate{", momentum=0.9" if optimizer == "sgd" else ""})'


def _lines(optimizer: str | None, made: Callable[[str], str]) -> str:
    """The line of the optimizer, or of each, so that nobody pastes the other's."""
    if optimizer:
        return f'optimizer = {made(optimizer)}'
    return '\n    '.join(f'optimizer = {made(name)}  # for {title}' for name, title in OPTIMIZERS.items())


def table(plan: Plan, methods: Sequence[Prediction]) -> str:
    """The comparison as a Markdown table."""
    rows = [['', 'MB sent a step', 'step, ms', 'communication, ms', 'times as fast']]
    for each in methods:
        rest, speed_up = 1e3 * (each.seconds - plan.step_time), methods[0].seconds / each.seconds
        megabytes = each.sent / 1e6
        sent = f'{megabytes:,.0f}' if megabytes >= 100 else f'{megabytes:.3g}'
        cells = sent, f'{1e3 * each.seconds:.2f}', f'{rest:.2f}', f'{speed_up:.2f}'
        rows.append([each.name, *cells])
    return markdown.table(rows)


def advice(plan: Plan, methods: Sequence[Prediction]) -> str:
    """The method to start with, why, and the line to paste.

    Dense training wherever nothing is clearly faster. Otherwise the first in the table that is nearly as fast
    as the fastest, among those that anybody has trained models of about this size with; above all of these,
    among all but DEF-Q.
    """
    dense, others = methods[0], [method for method in methods if method.family != 'dense']
    best = min(others, key=lambda method: method.seconds)
    share = 100 * (1 - plan.step_time / dense.seconds)
    if dense.seconds < _WORTH * best.seconds:
        return (
            f'Dense is best: communication is {share:.0f} % of its step, and no method here is more than '
            f'{max(1.0, dense.seconds / best.seconds):.2f} times as fast. Change nothing.'
        )
    tried = [each for each in others if plan.params <= _REACH * _TRAINED[each.family]]
    near = _nearly(tried or [each for each in others if each.family != 'DEF-Q'])
    chosen, also = near[0], [each.name for each in near[1:] if each.family != near[0].family]
    told = (
        f'Start with {chosen.name}: {_faster(chosen, dense)}, whose communication is {share:.0f} % of a step.'
    )
    if also:
        told += f' {"; ".join(also)}: as fast within a tenth. If you use one of them already, stay.'
    if not tried:
        told += ' No method here is known to have trained a model of this size.'
    told += f'\n\n    {chosen.paste}\n\nPaste it; {chosen.then}.'
    other = next(each for each in others if each.compression == _KNOWN)
    if other not in tried and other.seconds < dense.seconds:
        told += (
            f'\n{other.family} has not been trained at this size: DEF on {_TRAINED[other.family] / 1e6:g} M '
            f'parameters at most, by its authors, {other.family} on {_DEF_Q_ITSELF / 1e6:g} M.\n'
            f'To compare {other.name}, {_faster(other, dense)}:\n\n    {other.paste}\n'
        )
    elif chosen.compression == COMPRESSIONS[-1]:
        told += (
            f' Transformers, and a perceptron with 64 workers, ended behind at {COMPRESSIONS[-1]}: where '
            f'{_KNOWN} is fast enough, take it.'
        )
    if chosen.family == 'DEF-Q' and chosen is not others[0] and plan.params >= _DEF_Q_ITSELF:
        told += (
            f' A transformer of {_DEF_Q_ITSELF / 1e6:g} M parameters, one seed, ended 0.07 nats behind AdamW '
            f'at {_KNOWN} and 0.003 at {COMPRESSIONS[0]}: with transformers, take {COMPRESSIONS[0]} where it '
            'is fast enough.'
        )
    return f'{told}\nThese are times, not accuracies: compare both on your model.'


def _faster(method: Prediction, dense: Prediction) -> str:
    return f'{dense.seconds / method.seconds:.2f} times as fast as {dense.name}'


def _nearly(methods: Sequence[Prediction]) -> list[Prediction]:
    """Those that are nearly as fast as the fastest, in order."""
    fastest = min(method.seconds for method in methods)
    return [method for method in methods if _NEAR * method.seconds <= fastest]
