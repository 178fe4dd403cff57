"""The league: every method at the bytes of the others, rates tuned alike on held-out data.

    python -m benchmarks.league --problem=perceptron --output=results/league
    python -m benchmarks.league --problem=transformer --output=results/league

The optimizers are those of `METHODS`, as the trainer builds them; configs/tables/league.py has the same
contenders for the trainer. Each method's learning rate is the best of a grid of its own, half a decade apart,
that grows until the best is not at its edge. A contender whose record is there is not run again.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags

from benchmarks import grid, records
from benchmarks.league.contenders import Contender
from benchmarks.league.costs import costs
from benchmarks.league.problems import PROBLEMS, Problem


def tuned(problem: Problem, contender: Contender, run: Callable) -> tuple[float, dict[float, float]]:
    """The rate with the lowest held-out loss, a mean over seeds, and those of all that were tried."""
    rates, seeds = grid.Grid(contender.rate, 10**0.5), problem.tuning_seeds

    def losses(ks):
        curves = run(np.repeat([rates.rate(k) for k in ks], len(seeds)), np.tile(seeds, len(ks)), True)
        return curves[:, 1, -1].reshape(len(ks), len(seeds))

    tried = grid.tune(losses, 0, problem.reach)
    means = {float(f'{rates.rate(k):.3g}'): float(tried[k].mean()) for k in sorted(tried)}
    return rates.rate(grid.chosen(tried)), means


def measured(problem: Problem, contender: Contender) -> dict[str, Any]:
    """The record of one contender: its settings, costs and curves of all seeds."""
    begin = time.process_time()
    run = problem.train(contender)
    rate, tried = tuned(problem, contender, run)
    curves = run([rate] * len(problem.seeds), problem.seeds, False)
    extra = {'outer': contender.outer} if contender.outer else {}
    settings = {**contender.blocks, **contender.options, **contender.link, **contender.inner}
    return {
        'title': contender.title,
        'method': contender.method,
        'ratio': contender.nominal,
        'settings': settings | extra,
        'rate': rate,
        'tried': tried,
        **costs(problem, contender),
        **{name: rounded(name, curves[:, i]) for i, name in enumerate(problem.metrics)},
        'cpu_seconds': round(time.process_time() - begin),
    }


def rounded(name: str, curves: np.ndarray) -> list[list[float]]:
    """For the record; accuracies in %."""
    return (100 * curves).round(3).tolist() if name == 'accuracy' else curves.round(5).tolist()


def main(_) -> None:
    problem, name, only = PROBLEMS[flags.FLAGS.problem], flags.FLAGS.problem, flags.FLAGS.only
    if seeds := flags.FLAGS.seeds:
        problem, name = problem._replace(seeds=range(seeds)), f'{name}_{seeds}_seeds'
    found = records.Records(Path(flags.FLAGS.output, f'{name}.jsonl'), lambda r: (r['title'], r['ratio']))
    for contender in problem.contenders:
        known = found.get({'title': contender.title, 'ratio': contender.nominal})
        if contender.title not in only if only else known:
            continue
        record = found.add(measured(problem, contender))
        jax.clear_caches()
        final = np.array(record['test_loss'])[:, -1].mean()
        shown = contender.title, contender.nominal, record['rate'], f'{final:.4f}', record['cpu_seconds'], 's'
        print(*shown, file=sys.stderr, flush=True)


if __name__ == '__main__':
    flags.DEFINE_enum('problem', 'perceptron', list(PROBLEMS), 'What the contenders train on.')
    flags.DEFINE_string('output', 'results/league', 'Folder of the records, PROBLEM.jsonl.')
    flags.DEFINE_integer('seeds', 0, 'Seeds 0 to N - 1 instead of the usual, in PROBLEM_N_seeds.jsonl.')
    flags.DEFINE_list('only', [], 'Titles of the contenders to run, again if their records are there.')
    app.run(main)
