"""The program `python -m def_jax.plan`. Exits with 0, or with 2 and a one-line error for invalid input."""

import argparse
import dataclasses
import os
from typing import Any, NoReturn

import jax

from def_jax.tools import planner
from def_jax.tools.extras import needs_training
from def_jax.tools.planner import comparison, measure
from def_jax.tools.planner.devices import DEVICES, Device, get_device

_HELP = {
    'params': 'number of model parameters, e.g. 25.6e6',
    'step_time': 'seconds of computation per step on a worker, without communication',
    'bandwidth': "bandwidth of a worker's link: '10gbit', '10GB/s', or a number in bits per second",
    'workers': 'number of workers: racks, nodes or GPUs, whatever lies on one side of the slow line',
    'latency': 'latency of one message between neighbours, in seconds',
    'overlap': 'fraction of the dense all-reduce that overlaps with computation',
    'overhead': 'extra seconds per step for the compressed update',
    'dense_bytes': 'bytes per element of the dense all-reduce: 2 in bfloat16, 4 in float32',
    'evaluate_every': 'steps between evaluations of y; 0 evaluates once, at the end',
    'num_steps': 'number of steps of the run',
    'gpus_per_link': 'how many GPUs share a link, of which there are then --workers',
    'in_flight': 'messages travel while the next gradient is computed (overlap=True)',
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
_HIDDEN = "Each of Streaming DiLoCo's messages is taken to hide behind one gradient, which is the best case."


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f'plan: {message} (--help lists the flags)\n')  # one line, without the usage message


def main(argv: list[str] | None = None) -> int:
    parser = _parser()
    values = vars(parser.parse_args(argv))
    output, name, flops, measured, local_steps, optimizer = (
        values.pop(flag) for flag in ('output', 'device', 'flops', 'measure', 'local_steps', 'optimizer')
    )
    place = [values.pop(flag) for flag in _PLACE]
    try:
        if flops is not None and name is None:
            raise ValueError('--flops has no effect without --device.')
        if any(value is not None for value in place) and not measured:
            raise ValueError(f'--{"/--".join(_PLACE)} have no effect without --measure.'.replace('_', '-'))
        device = None if name is None else get_device(name)
        link = _measured(values, place) if measured else None
        if device is not None:
            _bound(values, device, flops)
        if values['latency'] is None:
            values['latency'] = planner.Plan.latency
        if missing := [f'--{field.replace("_", "-")}' for field in values if values[field] is None]:
            parser.error(f'the following arguments are required: {", ".join(missing)}')
        bandwidth = planner.parse_bandwidth(values['bandwidth'])
        plan = planner.Plan(**values | {'bandwidth': bandwidth})
        found = comparison.compare(plan, local_steps, optimizer)
        if output and os.path.isdir(output):  # matplotlib would write a file named '.png' there
            raise ValueError(f'{output=} is a folder; name a file, such as plan.png.')
        if output:
            with needs_training('plan'):
                planner.draw(plan, output)
    except (ValueError, OSError, RuntimeError) as error:  # the last is JAX's, of a network
        parser.exit(2, f'plan: {" ".join(str(error).split())}\n')
    if link is not None and jax.process_index() > 0:
        return 0
    print(
        'A worker is what lies on one side of the slow line: a rack, a node or a GPU. '
        f'Here there are {plan.workers}.\n'
        + (
            f'Each has {plan.gpus_per_link} GPUs. "Sent" is what leaves the link that they share.\n'
            if plan.gpus_per_link > 1
            else 'If several GPUs share a link, pass --gpus-per-link, and count links as --workers.\n'
        )
    )
    if link is not None:
        print(f'{link.describe()}\n')
    if device is not None and flops is not None:
        print(
            f'At its peak ({device.source}) {device.title} computes a step in {1e3 * plan.step_time:.2f} ms. '
            'That is a bound, not a prediction: the longer it takes, the less compression gains.\n'
        )
        told = 'No advice without a measured --step-time: at its peak, a device makes any network look slow.'
    else:
        told = comparison.advice(plan, found)
    print(comparison.table(plan, found), '', _HIDDEN, '', told, sep='\n')
    return 0


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
        kind = str if field.name == 'bandwidth' else field.type
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
        choices=list(comparison.OPTIMIZERS),
        help='what you train with; by default both are shown',
    )
    parser.add_argument('--output', help='PNG file for a plot of the speed-up')
    parser.add_argument(
        '--device',
        help=f'takes the peak rates of {", ".join(DEVICES)} for what is not measured',
    )
    parser.add_argument('--flops', type=float, help=_FLOPS)
    parser.add_argument(
        '--measure', action='store_true', help='times the link between the running processes, or devices'
    )
    for name, (kind, text) in _PLACE.items():
        parser.add_argument(*_spellings(name), type=kind, help=text)
    return parser


def _spellings(name: str) -> dict[str, None]:
    return dict.fromkeys((f'--{name.replace("_", "-")}', f'--{name}'))


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


def _bound(values: dict[str, Any], device: Device, flops: float | None) -> None:
    """Fills in what is not given: the least time that a step can take on the device, and its own link."""
    if flops is not None:
        if values['step_time'] is not None:
            raise ValueError('--step-time and --flops exclude each other: what is measured needs no bound.')
        values['step_time'] = device.step_time(values['params'] or 0, flops)
    if values['bandwidth'] is None and device.link is not None:
        values['bandwidth'] = str(device.link)
        values['latency'] = values['latency'] or 0.0  # of which vendors say nothing
