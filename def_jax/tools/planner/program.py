"""The program `python -m def_jax.plan`. Exits with 0, or with 2 and a one-line error for invalid input."""

import argparse
import dataclasses
import os
from collections.abc import Callable
from typing import Any, NoReturn

import jax

from def_jax.tools import planner
from def_jax.tools.extras import needs_training
from def_jax.tools.planner import advice, comparison, measure
from def_jax.tools.planner.devices import DEVICES, Device, get_device

_HELP = {
    'params': "number of parameters that are trained, e.g. 25.6M or 7B; with LoRA, the adapters'",
    'step_time': 'seconds of computation per step on a worker, without communication',
    'bandwidth': "bandwidth of a worker's link: '10gbit', '10GB/s', or a number in bits per second",
    'workers': (
        'number of workers: racks, nodes or GPUs, whatever lies on one side of the slow line; 1 for all GPUs '
        'of one machine'
    ),
    'latency': 'latency of one message between neighbours, in seconds; over the internet 0.01 to 0.1',
    'overlap': 'fraction of the dense all-reduce hidden behind the backward pass; --dense-step measures it',
    'overhead': 'extra seconds per step for the compressed update',
    'dense_bytes': 'bytes per element of the dense all-reduce: 2 in bfloat16, 4 in float32',
    'evaluate_every': 'steps between evaluations of y; 0 evaluates once, at the end',
    'num_steps': 'number of steps of the run',
    'gpus_per_link': 'how many GPUs share a link; --workers then counts links',
    'in_flight': 'messages travel while the next gradient is computed (overlap=True)',
    'fsdp': 'the GPUs of a link shard the parameters (FSDP); without it, each holds all',
    'memory': "of a device, e.g. 80GB; 0 for --device's, or for any",
}
_NO_ADVICE = (
    'No advice without a measured `--step-time`, or `--utilisation`: at its peak, a device makes any '
    'network look slow.'
)

_OR = {
    'step_time': ' (or --device, --flops and --utilisation, mostly 0.2 to 0.5)',
    'bandwidth': ' (or --measure)',
}
_PLACE = {
    'coordinator_address': (str, 'for --measure on several hosts: HOST:PORT of process 0'),
    'num_processes': (int, 'for --measure on several hosts: how many processes take part'),
    'process_id': (int, 'for --measure on several hosts: which of them this is, from 0'),
}
_FLOPS = (
    "operations of a worker's gradient, for --device, divided by the worker's devices: for a transformer, "
    '6 · parameters · tokens of a worker / devices of a worker'
)
_NOTES = (
    "- Each of Streaming DiLoCo's messages is assumed to travel while one gradient is computed, the best "
    'case{}.\n'
    '- Where steps were measured, predictions were too low: of dense steps by up to 25 %, of DEF-Q by up to '
    f'{100 * (advice.MISSED - 1):.0f} %.\n'
    "- They leave out the optimizer's own time; `--overhead` adds it to DEF-Q's rows.\n"
    '- A device holds parameters, gradients and optimizer state in float32, the state that of AdamW without '
    '`--optimizer`. Activations and frozen parameters are not counted.'
)
_WAITS = ". DEF-Q's rows wait for theirs, which `--in-flight` hides as well"
# Of a flag without its unit: the least that makes sense, and what was probably meant.
_LEAST = {
    'params': (1e3, '{}M or {}B'),
    'memory': (1e6, '{}GB'),
    'bandwidth': (planner.LEAST_BANDWIDTH, '{}gbit or {}mbit'),
}
_REQUIRED = [field.name for field in dataclasses.fields(planner.Plan) if field.default is dataclasses.MISSING]
_LONG = 100  # seconds of a step, above which milliseconds were probably meant
_NODE = 8  # GPUs of most nodes


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f'plan: {message} (--help lists the flags)\n')  # one line, without the usage message


def main(argv: list[str] | None = None) -> int:
    parser = _parser()
    values = vars(parser.parse_args(argv))
    output, local_steps, optimizer = (values.pop(flag) for flag in ('output', 'local_steps', 'optimizer'))
    measured = values['measure']
    try:
        plan, notes, bound = _plan(parser, values)
        found = comparison.compare(plan, local_steps, optimizer)
        if output and os.path.isdir(output):  # matplotlib would write a file named '.png' there
            raise ValueError(f'{output=} is a folder; name a file, such as plan.png.')
        if output:
            with needs_training('plan'):
                planner.draw(plan, output)
    except (ValueError, OSError, RuntimeError) as error:  # the last is JAX's, of a network
        parser.exit(2, f'plan: {" ".join(str(error).split())}\n')
    if measured and jax.process_index() > 0:
        return 0
    told = _NO_ADVICE if bound else advice.advise(plan, found, optimizer)
    first = [text for text in [advice.far_away(plan)] if text]
    shown = (
        [*first, *notes, comparison.table(plan, found), _NOTES.format('' if plan.in_flight else _WAITS)]
        if plan.workers > 1
        else []
    )
    print(*shown, told, sep='\n\n')
    return 0


def _plan(parser: _Parser, values: dict[str, Any]) -> tuple[planner.Plan, list[str], bool]:
    """The plan that the flags describe, what to say of it, and whether its step is but a bound."""
    name, flops, utilisation, measured, dense_step = (
        values.pop(flag) for flag in ('device', 'flops', 'utilisation', 'measure', 'dense_step')
    )
    place = [values.pop(flag) for flag in _PLACE]
    for flag, given, needed, there in (
        ('--flops', flops is not None, '--device', name is not None),
        ('--utilisation', utilisation is not None, f'--flops, the {_FLOPS}', flops is not None),
        ('/'.join(map(_flag, _PLACE)), any(value is not None for value in place), '--measure', measured),
    ):
        if given and not there:
            raise ValueError(f'{flag} has no effect without {needed}.')
    if dense_step is not None and values['overlap'] is not None:
        raise ValueError('--dense-step and --overlap exclude each other: the step says what is hidden.')
    device = None if name is None else get_device(name)
    for field in ('params', 'memory'):
        values[field] = values[field] and planner.parse_size(values[field], field)
    measures = '`--measure`' if measured else ''
    sources = measures or '`--bandwidth`', '`--latency`' if values['latency'] is not None else measures
    link = _measured(values, place) if measured else None
    if device is not None:
        _bound(values, device, flops, utilisation)
    if values['latency'] is None:
        values['latency'] = planner.Plan.latency
    if missing := [_flag(field) + _OR.get(field, '') for field in _REQUIRED if values[field] is None]:
        told = _own_link(device) if device is not None and values['bandwidth'] is None else ''
        parser.error(f'the following arguments are required: {", ".join(missing)}{told}')
    values['bandwidth'] = planner.parse_bandwidth(values['bandwidth'])
    _check_units(values)
    plan = planner.Plan(**values)
    notes = [f'{_workers(plan)} {_speed(plan, *sources)}', *([link.describe()] if link else [])]
    notes += [text for text in (_inside(plan), '' if flops else _long(plan)) if text]
    if device is not None and flops is not None:
        notes.append(_estimate(plan, device, utilisation))
    if dense_step is not None:
        if dense_step < 0.98 * plan.step_time:  # two measurements may differ a little
            raise ValueError(
                f'--dense-step={dense_step:g} is shorter than a step without communication, '
                f'{plan.step_time:g}. Measure both with the same model and the same batch a worker.'
            )
        notes.append(_hidden(plan, dense_step))
        plan = dataclasses.replace(plan, overlap=plan.hidden(dense_step))
    _check_hidden(plan, '--overlap' if dense_step is None else '--dense-step')
    return plan, notes, device is not None and flops is not None and utilisation is None


def _check_units(values: dict[str, Any]) -> None:
    """Raises ValueError for a value that makes sense in another unit alone."""
    for field, (least, meant) in _LEAST.items():
        if 0 < values[field] < least:
            told = meant.replace('{}', f'{_flag(field)}={values[field]:g}')
            raise ValueError(f'{_flag(field)}={values[field]:g} has no unit. Did you mean {told}?')


def _hidable(plan: planner.Plan, seconds: float) -> bool:
    """Whether a step has time to hide so much; two measurements may differ a little."""
    return seconds <= 1.1 * plan.step_time


def _check_hidden(plan: planner.Plan, flag: str) -> None:
    """Raises ValueError if more of the all-reduce hides than a step has time for."""
    hidden = (plan.overlap or 0.0) * plan.all_reduce(plan.params, plan.dense_bytes)
    if not _hidable(plan, hidden):
        raise ValueError(
            f'{flag} hides {comparison.milliseconds(hidden)} ms of communication behind '
            f'{comparison.milliseconds(plan.step_time)} ms of computation, which is impossible: the link is '
            'faster than --bandwidth says, --step-time has communication in it, or less hides.'
        )


def _long(plan: planner.Plan) -> str:
    if plan.step_time <= _LONG:
        return ''
    return (
        f'A step is taken to compute for {plan.step_time:,g} seconds, the unit of `--step-time`. If you '
        f'meant milliseconds, pass {plan.step_time / 1e3:g}.'
    )


def _inside(plan: planner.Plan) -> str:
    """What a worker's GPUs exchange among themselves, where that isn't free."""
    if plan.gpus_per_link <= _NODE:
        return ''
    size, gpus = plan.dense_bytes * plan.params, plan.gpus_per_link
    moved = (3 if plan.fsdp else 2) * (1 - 1 / gpus) * size
    what = f'FSDP over its {gpus} GPUs' if plan.fsdp else f'the mean over its {gpus} GPUs'
    return (
        "What a worker's GPUs exchange among themselves is taken as free. Where a worker is several nodes, "
        f"it isn't: {what} moves {moved / 1e9:,.3g} GB over every node's link in a step, "
        f'{8 * moved / 1e11:.2g} s at 100 Gbit/s. Measure `--step-time` on a whole worker, so that it has '
        'this time.'
    )


def _workers(plan: planner.Plan) -> str:
    return (
        'A worker is what lies on one side of the slow line: a rack, a node or a GPU. '
        f'Here there are {plan.workers}. '
    ) + (
        f'Each has {plan.gpus_per_link} GPUs. "Sent" is what leaves the link that they share.'
        if plan.gpus_per_link > 1
        else 'If several GPUs share a link, pass `--gpus-per-link`, and count links as `--workers`.'
    )


def _speed(plan: planner.Plan, bandwidth: str, latency: str) -> str:
    """What a worker's link is taken to do, and which flags say so."""
    passes, takes = f'{plan.bandwidth / 1e9:,.4g} Gbit/s', f'{1e3 * plan.latency:.3g} ms'
    latency = latency or 'the default of `--latency`'
    return f'A link passes {passes} ({bandwidth}) and takes {takes} a message ({latency}).'


def _own_link(device: Device) -> str:
    """Why a device's link is not that of a worker."""
    if device.link is None:
        return ''
    speed = f'{device.link / 1e9:g}'
    return (
        f'. The links of {device.title}, {speed} Gbit/s, join the devices of one machine or TPU slice alone: '
        f'pass --bandwidth={speed}gbit only if nothing slower lies between workers'
    )


def _estimate(plan: planner.Plan, device: Device, utilisation: float | None) -> str:
    step = comparison.milliseconds(plan.step_time)
    if utilisation is None:
        share = ''
        more = 'That is a bound, not a prediction: the longer it takes, the less compression gains.'
    else:
        share, more = f'{100 * utilisation:g} % of ', 'Your own step decides: pass `--step-time`.'
    told = f'At {share}its peak, {device.title} computes a step in {step} ms. {more}'
    return f'{told} Its peak rates are from <{device.source}>.'


def _hidden(plan: planner.Plan, dense_step: float) -> str:
    given, whole = comparison.milliseconds(dense_step), plan.dense_step()
    told = f'Your dense step of {given} ms hides {100 * plan.hidden(dense_step):.0f} % of the all-reduce'
    if plan.gpus_per_link > 1:
        row, other = comparison.compare(plan)[:2]
        whole = other.seconds
        if _hidable(plan, whole - dense_step):
            share = max(0.0, (whole - dense_step) / (whole - plan.step_time))
            told += (
                f' if it was laid out as the first row, {row.name}. If as the second, {other.name}, pass '
                f'`--overlap={share:.2g}` instead'
            )
        else:
            told += f', laid out as the first row, {row.name}: the second, {other.name}, takes longer'
    if dense_step > whole * 1.1:
        told += (
            f'. Without overlap it should take {comparison.milliseconds(whole)} ms: the line is slower than '
            '`--bandwidth` says, which `--measure` finds out'
        )
    return f'{told}.'


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f'{text!r} must be a number of seconds without a unit, such as 0.25 for 250 ms'
        ) from None


_KINDS: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(('params', 'memory', 'bandwidth'), str),
    **dict.fromkeys(('step_time', 'latency', 'overhead'), _seconds),
    'overlap': float,
}


def _parser() -> _Parser:
    parser = _Parser(
        prog='python -m def_jax.plan',
        description=planner.__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for field in dataclasses.fields(planner.Plan):
        names = _spellings(field.name)
        if field.type is bool:
            parser.add_argument(*names, action='store_true', help=_HELP[field.name])
            continue
        kind = _KINDS.get(field.name, field.type)
        default = None if field.default is dataclasses.MISSING else field.default
        text = _HELP[field.name] + ('' if default is None else f' (default: {default:g})')
        # `main` sets the default of latency last: what is measured, or a vendor's, comes before it.
        parser.add_argument(
            *names, type=kind, default=None if field.name == 'latency' else default, help=text
        )
    parser.add_argument(
        *_spellings('local_steps'),
        type=int,
        default=50,
        help='H of DiLoCo, steps between averages (default: 50)',
    )
    parser.add_argument(
        '--optimizer',
        help=f'what you train with, {" or ".join(comparison.OPTIMIZERS)}; by default both are shown',
    )
    parser.add_argument('--output', help='PNG file for a plot of the speed-up')
    parser.add_argument(
        '--device',
        help=f'takes the peak rates and the memory of {", ".join(DEVICES)} for what is not given',
    )
    parser.add_argument('--flops', type=float, help=_FLOPS)
    parser.add_argument(
        '--utilisation',
        type=float,
        help='share of the peak that training reaches, for --flops: mostly 0.2 to 0.5',
    )
    parser.add_argument(
        *_spellings('dense_step'),
        type=_seconds,
        help='measured seconds of a dense step with all workers, from which --overlap follows; laid out as '
        "the table's first row: with --fsdp, shards inside a worker and a mean between",
    )
    parser.add_argument(
        '--measure', action='store_true', help='times the link between the running processes, or devices'
    )
    for name, (kind, text) in _PLACE.items():
        parser.add_argument(*_spellings(name), type=kind, help=text)
    return parser


def _flag(name: str) -> str:
    return f'--{name.replace("_", "-")}'


def _spellings(name: str) -> dict[str, None]:
    return dict.fromkeys((_flag(name), f'--{name}'))


def _measured(values: dict[str, Any], place: list[Any]) -> measure.Link:
    """Fills in what the link between the running workers can do; a given number of workers stays."""
    if values['bandwidth'] is not None:
        raise ValueError('--measure and --bandwidth exclude each other: what is measured needs no guess.')
    measure.join(*place)
    link = measure.measure_link()
    values['bandwidth'] = str(link.bandwidth)
    for name in ('latency', 'workers'):
        values[name] = getattr(link, name) if values[name] is None else values[name]
    return link


def _bound(values: dict[str, Any], device: Device, flops: float | None, utilisation: float | None) -> None:
    """Fills in what is not given: the time of a step by the device's peak, and its memory."""
    if flops is not None:
        if values['step_time'] is not None:
            raise ValueError('--step-time and --flops exclude each other: what is measured needs no bound.')
        share = 1.0 if utilisation is None else utilisation
        values['step_time'] = device.step_time(values['params'] or 0, flops, share)
    values['memory'] = values['memory'] or device.capacity
    if values['workers'] == 1 and device.link is not None:  # over which nothing of this is sent
        values['bandwidth'] = values['bandwidth'] or str(device.link)
