"""The program `python -m def_jax.plan`."""

import dataclasses
import math
import sys
from typing import Any

from absl import app, flags

from def_jax.plan import Plan, draw, parse_bandwidth, table


def main(_) -> int:
    values: dict[str, Any] = {field.name: flags.FLAGS[field.name].value for field in dataclasses.fields(Plan)}
    try:
        plan = Plan(**values | {'bandwidth': parse_bandwidth(values['bandwidth'])})
    except ValueError as error:
        print(f'plan: {error}', file=sys.stderr)
        return 2
    least = plan.break_even()
    print(table(plan), '', plan.verdict(), sep='\n')
    print(
        f'Not slower than dense SGD from ratio {least:.2f} on.' if math.isfinite(least) else 'No ratio pays.'
    )
    if flags.FLAGS.output:
        draw(plan, flags.FLAGS.output)
    return 0


if __name__ == '__main__':
    flags.DEFINE_float('params', None, 'Elements of the model, e.g. 25.6e6.')
    flags.DEFINE_float('step_time', None, 'Seconds that a worker computes in a step, without communication.')
    flags.DEFINE_string('bandwidth', None, "Of a worker's link: '10gbit', '800mbit', or bits a second.")
    flags.DEFINE_integer('workers', None, 'Number of workers.')
    flags.DEFINE_float('latency', Plan.latency, 'Seconds of one message between neighbours.')
    flags.DEFINE_float('overlap', Plan.overlap, 'Share of a dense all-reduce hidden behind the computation.')
    flags.DEFINE_float('overhead', Plan.overhead, 'Seconds by which the compressed update is slower.')
    flags.DEFINE_integer('element_bytes', Plan.element_bytes, 'Bytes of an element on the wire.')
    flags.DEFINE_integer('evaluate_every', Plan.evaluate_every, 'Steps between evaluations of y; 0: one.')
    flags.DEFINE_integer('num_steps', Plan.num_steps, 'Steps of the run.')
    flags.DEFINE_string('output', None, 'PNG for a picture of the speed-up.')
    for name in ('step_time', 'element_bytes', 'evaluate_every', 'num_steps'):
        flags.DEFINE_alias(name.replace('_', '-'), name)
    flags.mark_flags_as_required(['params', 'step_time', 'bandwidth', 'workers'])
    app.run(main)
