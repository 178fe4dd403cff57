"""CPU time of each method's optimizer stage over that of plain AdamW, on one tree.

    XLA_FLAGS=--xla_cpu_multi_thread_eigen=false python -m benchmarks.league.stage --output=results/league

The contenders of the transformer at 1/64, without a network: one worker, on the parameters of a transformer
of width 384. Each runs in turn with plain AdamW. CPU time of one thread instead of time on the clock, so that
other programs on the machine matter little; they still share the memory's bandwidth.
"""

import functools
import json
import sys
import time
from pathlib import Path

import jax
from absl import app, flags

from benchmarks import timing
from benchmarks.league.transformer import CONTENDERS, inner
from benchmarks.trees import NETWORKS


def main(_) -> None:
    params = NETWORKS['transformer'].variables()['params']
    grads = jax.tree.map(lambda x: 0.01 * jax.random.normal(jax.random.key(1), x.shape), params)
    measure = functools.partial(timing.stage, params=params, grads=grads, clock=time.process_time)
    plain, path = measure(inner(0.01)), Path(flags.FLAGS.output) / 'stage.json'
    found: dict[str, float] = {}
    for contender in CONTENDERS:
        if (contender.nominal == 16 and contender.method != 'powersgd') or contender.method == 'sgd':
            continue
        measured = measure(contender.optimizer(inner(0.01, **contender.inner), None))
        plain.seconds.clear()
        timing.alternate([plain, measured], rounds=flags.FLAGS.rounds, calls=1, seconds=flags.FLAGS.seconds)
        found[contender.title] = round(measured.median / plain.median, 2)
        print(contender.title, found[contender.title], len(plain.seconds), file=sys.stderr, flush=True)
        path.write_text(json.dumps(found, ensure_ascii=False, indent=1) + '\n')


if __name__ == '__main__':
    flags.DEFINE_string('output', 'results/league', 'Folder of stage.json.')
    flags.DEFINE_integer('rounds', 12, 'How often a contender runs.')
    flags.DEFINE_float('seconds', 60, 'Approximate limit of a contender, on the clock, after three rounds.')
    app.run(main)
