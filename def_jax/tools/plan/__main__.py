"""The program `python -m def_jax.plan`. Exits with 0, or with 2 and a one-line error for invalid input."""

import argparse
import dataclasses
import math
import os
import sys
from typing import Any, NoReturn

from def_jax.tools import plan as plan_lib
from def_jax.tools.extras import needs_training
from def_jax.tools.plan.devices import DEVICES, Device, get_device

_HELP = {
    'params': 'number of model parameters, e.g. 25.6e6',
    'step_time': 'seconds of computation per step on a worker, without communication',
    'bandwidth': "bandwidth of a worker's link: '10gbit', '10GB/s', or a number in bits per second",
    'workers': 'number of workers',
    'latency': 'latency of one message between neighbours, in seconds',
    'overlap': 'fraction of the dense all-reduce that overlaps with computation',
    'overhead': 'extra seconds per step for the compressed update',
    'element_bytes': 'bytes per element on the wire',
    'evaluate_every': 'steps between evaluations of y; 0 evaluates once, at the end',
    'num_steps': 'number of steps of the run',
    'in_flight': 'messages travel while the next gradient is computed (overlap=True)',
}

_FLOPS = "operations of a worker's gradient, for --device: 6 · parameters · tokens for a transformer"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f'plan: {message} (--help lists the flags)\n')  # one line, without the usage message


def main(argv: list[str] | None = None) -> int:
    parser = _Parser(prog='python -m def_jax.plan', description=plan_lib.__doc__, allow_abbrev=False)
    for field in dataclasses.fields(plan_lib.Plan):
        names = dict.fromkeys((f'--{field.name.replace("_", "-")}', f'--{field.name}'))
        if field.type is bool:
            parser.add_argument(*names, action='store_true', help=_HELP[field.name])
            continue
        kind = str if field.name == 'bandwidth' else field.type
        default = None if field.default is dataclasses.MISSING else field.default
        text = _HELP[field.name] + ('' if default is None else f' (default: {default:g})')
        parser.add_argument(*names, type=kind, default=default, help=text)
    parser.add_argument('--output', help='PNG file for a plot of the speed-up')
    parser.add_argument(
        '--device',
        help=f'takes the peak rates of {", ".join(DEVICES)} for what is not measured',
    )
    parser.add_argument('--flops', type=float, help=_FLOPS)
    values = vars(parser.parse_args(argv))
    output, name, flops = (values.pop(flag) for flag in ('output', 'device', 'flops'))
    try:
        device = None if name is None else get_device(name)
        if device is not None:
            _bound(values, device, flops)
        if missing := [f'--{field.replace("_", "-")}' for field in values if values[field] is None]:
            parser.error(f'the following arguments are required: {", ".join(missing)}')
        bandwidth = plan_lib.parse_bandwidth(values['bandwidth'])
        plan = plan_lib.Plan(**values | {'bandwidth': bandwidth})
        if output and os.path.isdir(output):  # matplotlib would write a file named '.png' there
            raise ValueError(f'{output=} is a folder; name a file, such as plan.png.')
        if output:
            with needs_training('plan'):
                plan_lib.draw(plan, output)
    except (ValueError, OSError) as error:
        parser.exit(2, f'plan: {" ".join(str(error).split())}\n')
    least = plan.break_even()
    if device is not None and flops is not None:
        print(
            f'At its peak ({device.source}) {device.title} computes a step in {1e3 * plan.step_time:.2f} ms. '
            'That is a bound, not a prediction: the longer it takes, the less compression gains.\n'
        )
    print(plan_lib.table(plan), '', plan.verdict(), sep='\n')
    pays = f'At least as fast as dense SGD from ratio {least:.2f} up.'
    print(pays if math.isfinite(least) else 'No ratio pays off.')
    return 0


def _bound(values: dict[str, Any], device: Device, flops: float | None) -> None:
    """Fills in what is not given: the least time that a step can take on the device, and its own link."""
    if flops is not None:
        if values['step_time'] is not None:
            raise ValueError('--step-time and --flops exclude each other: what is measured needs no bound.')
        values['step_time'] = device.step_time(values['params'] or 0, flops)
    if values['bandwidth'] is None and device.link is not None:
        values['bandwidth'] = str(device.link)


if __name__ == '__main__':
    sys.exit(main())
