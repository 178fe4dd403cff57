"""What the workers of both frameworks share: variants take turns; time and the kernel's counters by step."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.cluster.network import counters


def read_job() -> dict[str, Any]:
    return json.loads(sys.argv[1])


def measure(
    variants: dict[str, Callable[[], None]], barrier: Callable[[], None], job: dict
) -> dict[str, dict]:
    """Runs all variants in turn, `job['rounds']` times, after `job['warm_up']` rounds that are not counted.

    Args:
        variants: for each name a function that does one step and returns when the step is done.
        barrier: returns when all workers have called it.
        job: `rounds`, `warm_up`, `steps` (of a variant in a round).

    Returns:
        For each variant `seconds`, one a step in the order of the rounds, and the increments of the
        interface's counters, totals of the counted rounds.
    """
    found: dict[str, dict] = {name: {'seconds': [], 'counters': {}} for name in variants}
    for round_ in range(job['warm_up'] + job['rounds']):
        for name, step in variants.items():
            step()  # the first after another variant finds its arrays out of the caches
            barrier()
            before, seconds = counters(), []
            for _ in range(job['steps']):
                start = time.perf_counter()
                step()
                seconds.append(time.perf_counter() - start)
            after = counters()
            if round_ >= job['warm_up']:
                found[name]['seconds'] += seconds
                total = found[name]['counters']
                for key, value in after.items():
                    total[key] = total.get(key, 0) + value - before[key]
    return found


def write_report(job: dict, report: dict) -> None:
    Path(job['output']).write_text(json.dumps(report))
