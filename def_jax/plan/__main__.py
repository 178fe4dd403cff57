"""The program `python -m def_jax.plan`: exit code 0, or 2 and one line where something cannot be used."""

import argparse
import dataclasses
import math
import os
import sys
from typing import NoReturn

from def_jax import plan as plan_lib

_HELP = {
    'params': 'elements of the model, e.g. 25.6e6',
    'step_time': 'seconds that a worker computes in a step, without communication',
    'bandwidth': "of a worker's link: '10gbit', '800mbit', or bits per second",
    'workers': 'number of workers',
    'latency': 'seconds of one message between neighbours',
    'overlap': 'share of a dense all-reduce hidden behind the computation',
    'overhead': 'seconds by which the compressed update is slower',
    'element_bytes': 'bytes of an element on the wire',
    'evaluate_every': 'steps between evaluations of y; 0: one at the end',
    'num_steps': 'steps of the run',
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f'plan: {message} (--help lists the flags)\n')  # in one line, without the usage


def main(argv: list[str] | None = None) -> int:
    parser = _Parser(prog='python -m def_jax.plan', description=plan_lib.__doc__, allow_abbrev=False)
    for field in dataclasses.fields(plan_lib.Plan):
        names = dict.fromkeys((f'--{field.name.replace("_", "-")}', f'--{field.name}'))
        kind = str if field.name == 'bandwidth' else field.type
        required = field.default is dataclasses.MISSING
        default = None if required else field.default
        parser.add_argument(*names, type=kind, required=required, default=default, help=_HELP[field.name])
    parser.add_argument('--output', help='PNG for a picture of the speed-up')
    values = vars(parser.parse_args(argv))
    output = values.pop('output')
    try:
        bandwidth = plan_lib.parse_bandwidth(values['bandwidth'])
        plan = plan_lib.Plan(**values | {'bandwidth': bandwidth})
        if output and os.path.isdir(output):  # matplotlib would write a file named '.png' there
            raise ValueError(f'{output=} is a folder; name a file, such as plan.png.')
        if output:
            plan_lib.draw(plan, output)
    except (ValueError, OSError) as error:
        parser.exit(2, f'plan: {" ".join(str(error).split())}\n')
    least = plan.break_even()
    print(plan_lib.table(plan), '', plan.verdict(), sep='\n')
    print(
        f'Not slower than dense SGD from ratio {least:.2f} on.' if math.isfinite(least) else 'No ratio pays.'
    )
    return 0


if __name__ == '__main__':
    sys.exit(main())
