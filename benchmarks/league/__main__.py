"""The league: every method at the bytes of the others, rates tuned alike on held-out data.

    python -m benchmarks.league --problem=perceptron --output=results/league
    python -m benchmarks.league --problem=transformer --output=results/league

The optimizers are those of `METHODS`, as the trainer builds them; configs/tables/league.py has the same
contenders for the trainer. Each method's learning rate is the best of a grid of its own, half a decade apart,
that grows until the best is not at its edge. A contender whose record is there is not run again.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags

from benchmarks.league.contenders import Contender
from benchmarks.league.costs import costs
from benchmarks.league.problems import PROBLEMS, Problem


def tuned(problem: Problem, contender: Contender, run: Callable) -> tuple[float, dict[float, float]]:
    """The rate with the lowest held-out loss, a mean over seeds, and those of all that were tried."""
    tried: dict[float, float] = {}
    grid, seeds = [contender.rate * factor for factor in problem.grid], problem.tuning_seeds
    for _ in range(8):
        curves = run(np.repeat(grid, len(seeds)), np.tile(seeds, len(grid)), True)
        losses = curves[:, 1, -1].reshape(len(grid), len(seeds)).mean(1)
        losses = np.nan_to_num(losses, nan=np.inf, posinf=np.inf)
        tried |= {float(f'{rate:.3g}'): float(loss) for rate, loss in zip(grid, losses, strict=True)}
        rates = sorted(tried)
        best = min(tried, key=tried.get)
        if best not in (rates[0], rates[-1]):
            break
        more = len(problem.grid) // 2
        grid = [best * (0.3**i if best == rates[0] else 3.0**i) for i in range(1, more + 1)]
    return best, dict(sorted(tried.items()))


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
    folder = Path(flags.FLAGS.output)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f'{name}.json'
    known = json.loads(path.read_text()) if path.exists() else []
    records = {(record['title'], record['ratio']): record for record in known}
    for contender in problem.contenders:
        key = contender.title, contender.nominal
        if contender.title not in only if only else key in records:
            continue
        records[key] = record = measured(problem, contender)
        jax.clear_caches()
        final = np.array(record['test_loss'])[:, -1].mean()
        print(*key, record['rate'], f'{final:.4f}', record['cpu_seconds'], 's', file=sys.stderr, flush=True)
        lines = ',\n'.join(json.dumps(record, ensure_ascii=False) for record in records.values())
        path.write_text(f'[\n{lines}\n]\n')


if __name__ == '__main__':
    flags.DEFINE_enum('problem', 'perceptron', list(PROBLEMS), 'What the contenders train on.')
    flags.DEFINE_string('output', 'results/league', 'Folder of the records, PROBLEM.json.')
    flags.DEFINE_integer('seeds', 0, 'Seeds 0 to N - 1 instead of the usual, in PROBLEM_N_seeds.json.')
    flags.DEFINE_list('only', [], 'Titles of the contenders to run, again if their records are there.')
    app.run(main)
