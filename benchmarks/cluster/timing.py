"""Shared by the workers of both frameworks: runs variants in turn, times steps and counts their traffic."""

import contextlib
import ctypes
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.cluster.network import counters


def read_job() -> dict[str, Any]:
    """What this process is started for; from now on it keeps its memory."""
    keep_memory()
    return json.loads(sys.argv[1])


def keep_memory() -> None:
    """Lets malloc keep what is freed, as JAX's allocator for GPUs does; does nothing where there is no glibc.

    Above 32 MB glibc returns memory to the system, and a program's temporaries are mapped page by page again
    at every call, which may take longer than its arithmetic.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        set_option = ctypes.CDLL(None).mallopt
        trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # of malloc.h
        for option in trim_threshold, top_pad, mmap_threshold:
            set_option(option, 2**28)


def measure(
    variants: dict[str, Callable[[], None]], barrier: Callable[[], None], job: dict
) -> dict[str, dict]:
    """Runs all variants in turn, `job['rounds']` times, after a round that is not counted.

    Args:
        variants: for each name, a function that does one step and returns when the step is done.
        barrier: returns when all workers have called it.
        job: `rounds`, `steps` (per variant and round), `worker`, `num_workers`, and `alone`, if given: the
            names of variants that do not communicate and are also run by one worker at a time while the
            others wait.

    Returns:
        For each variant, and as NAME_alone for those in `alone`: `seconds`, one per step in the order of the
        rounds, `processor`, this process's processor time of a step, user and system, and `counters`, the
        increments of the interface's counters with those of two barriers, both one per round.
    """
    found: dict[str, dict] = {}
    barrier()  # after compiling: on JAX 0.10 a reduce-scatter waits 30 seconds for others
    for round_ in range(1 + job['rounds']):
        entries = found if round_ else {}
        for name, step in variants.items():
            step()  # the first step after another variant finds cold caches
            barrier()
            _record(entries, name, step, job['steps'], barrier)
        for name in job.get('alone', ()):
            for turn in range(job['num_workers']):
                barrier()
                if turn == job['worker']:
                    variants[name]()
                    _record(entries, f'{name}_alone', variants[name], job['steps'], lambda: None)
        barrier()
    return found


def _record(
    entries: dict[str, dict], name: str, step: Callable[[], None], steps: int, meet: Callable[[], None]
) -> None:
    """Adds the times of some steps, and what the interface counts meanwhile, to the entry of that name.

    A worker's step ends when it has received everything, which may be before its interface has sent
    everything: `meet` returns when it has. Since workers of one node count the same interface, none may start
    or go on before all have read it.
    """
    before = counters()
    meet()
    seconds, busy = [], time.process_time()
    for _ in range(steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    busy = time.process_time() - busy
    meet()
    after = counters()
    meet()
    entry = entries.setdefault(name, {'seconds': [], 'processor': [], 'counters': {key: [] for key in after}})
    entry['seconds'] += seconds
    entry['processor'].append(busy / steps)
    for key, count in after.items():
        entry['counters'][key].append(count - before[key])


def write_report(job: dict, report: dict) -> None:
    Path(job['output']).write_text(json.dumps(report))
