"""The page of the soak of `elastic.py`, from its runs."""

from collections.abc import Callable

import numpy as np

from def_jax.tools import markdown

HEAD = """# Workers that come and go

Written by `python -m benchmarks.reliability.elastic` from [elastic.json](elastic.json).

A perceptron on digits with DEF at 16, seed after seed: processes with gloo, a worker each, {steps} steps, a
checkpoint every 50 unless said otherwise, started by `def_jax.launch`. A fault is a SIGKILL, or a SIGSTOP of
12 seconds, which is longer than the heartbeat's 10. *Elastic* goes on with those who live
(`def_jax.elastic`); *restart* has a fixed number of workers, and all start again from the last checkpoint
(`def_jax.launch --together`).

A pause is more than a second between two steps. Useful steps are those of the final states, without repeated
ones; runs that were ended because the time was over count, too. Percentages of rates are of the undisturbed
runs', with a checkpoint every 50 steps.

"""
FAULTS = """
## What a fault cost, by its kind

Medians, with the largest in brackets; every fault is in the records. Faults in one pause share it in equal
parts. The norm is that of y's change between two steps; a restart from a checkpoint repeats steps instead.
A fault that no pause followed counts as zero.

"""
KINDS = {
    'SIGKILL': lambda fault: fault['how'] == 'SIGKILL' and fault['process'] != 0,
    'SIGSTOP': lambda fault: fault['how'] == 'SIGSTOP' and fault['process'] != 0,
    'of process 0': lambda fault: fault['process'] == 0,
}


def kind(run: dict) -> tuple:
    """The column a run belongs to: its part, seconds between faults, steps between checkpoints."""
    return run['part'], run['every'], run.get('checkpoint', 50)


def page(runs: list[dict]) -> str:
    columns: dict[tuple, list[dict]] = {}
    for run in runs:
        columns.setdefault(kind(run), []).append(run)
    base = rate(columns.get(('undisturbed', None, 50), []))
    cells = [column(found, base) for found in columns.values()]
    rows = [[name, *(cell[name] for cell in cells)] for name in cells[0]]
    titles = {key: title(*key) for key in columns}
    text = HEAD.format(**runs[0]) + markdown.table([['', *titles.values()], *rows]) + '\n'
    kinds = [
        kind_row(titles[key], cause, [fault for run in found for fault in run['faults'] if belongs(fault)])
        for key, found in columns.items()
        if key[0] != 'undisturbed'
        for cause, belongs in KINDS.items()
    ]
    head = ['run', 'fault', 'number', 'seconds', 'steps repeated', "‖y − y'‖"]
    return text + FAULTS + markdown.table([head, *kinds]) + '\n'


def title(part: str, every: float | None, checkpoint: int) -> str:
    faults = f', a fault every {every:g} s' if every else ''
    return part + faults + (f', a checkpoint every {checkpoint} steps' if checkpoint != 50 else '')


def kind_row(part: str, cause: str, faults: list[dict]) -> list:
    def cost(name: str, digits: str) -> str:
        values = [fault[name] for fault in faults]
        return f'{np.median(values):{digits}} ({max(values):{digits}})' if values else ''

    costs = cost('seconds', '.1f'), cost('steps repeated', '.3g'), cost('y moved', '.3f')
    return [part, cause, len(faults), *costs]


def column(runs: list[dict], base: float) -> dict[str, str]:
    """What the runs of a part came to; `base` is the undisturbed rate outside of pauses."""
    faults = [fault for run in runs for fault in run['faults']]
    finished = [run for run in runs if run['code'] == 0]
    kills = sum(fault['how'] == 'SIGKILL' for fault in faults)
    first = sum(fault['process'] == 0 for fault in faults)
    seconds = sum(run['seconds'] for run in runs)
    different = sum(run['differences between survivors'] for run in runs)
    made, kept = (sum(run[name] for run in runs) for name in ('steps made', 'last step'))

    def of_faults(summary: Callable, name: str) -> str:
        return f'{summary([fault[name] for fault in faults]):.3g}' if faults else '0'

    return {
        'commit; machine': place(runs[0]),
        'processes': f'{runs[0]["processes"]}',
        'runs, finished': f'{len(runs)}, {len(finished)}',
        'minutes': f'{seconds / 60:.1f}',
        'SIGKILL, SIGSTOP; of them process 0': f'{kills}, {len(faults) - kills}, {first}',
        'deaths of process 0 besides': f'{sum(len(run["deaths of process 0 besides"]) for run in runs)}',
        'steps after which two processes had different parameters': f'{different}',
        'steps repeated': of_faults(sum, 'steps repeated'),
        'steps that were useful': f'{100 * kept / made:.1f} % of {made}',
        'test loss of y, mean ± standard deviation (seeds)': loss(finished),
        'steps a second outside of pauses': share(rate(runs), base),
        'useful steps a second of the whole time': share(kept / seconds, base),
        'seconds in pauses': f'{sum(run["seconds in pauses"] for run in runs):.0f}',
        'longest pause, seconds': f'{max(run["longest pause"] for run in runs):.1f}',
        'seconds of a fault, median': of_faults(np.median, 'seconds'),
        "‖y − y'‖ of a fault, median": of_faults(np.median, 'y moved'),
        "‖y − y'‖ of a fault, largest": of_faults(max, 'y moved'),
    }


def place(run: dict) -> str:
    """Where a run was made; of earlier ones, that is on the page of all measurements."""
    if 'origin' not in run:
        return 'not recorded'
    return f'{run["origin"]["commit"]}; {run["cores"]} of {run["origin"]["machine"]}'


def rate(runs: list[dict]) -> float:
    """Steps a second outside of pauses."""
    steps, seconds = (sum(run[f'{name} outside'] for run in runs) for name in ('steps', 'seconds'))
    return steps / seconds if seconds else float('nan')


def share(rate: float, base: float) -> str:
    """A rate with its part of the undisturbed one, if that was measured."""
    return f'{rate:.2f}' + (f' ({100 * rate / base:.0f} %)' if base > 0 else '')


def loss(finished: list[dict]) -> str:
    losses = [value for run in finished for value in run['losses']]
    if len(losses) < 2:
        return ', '.join(f'{value:.4f}' for value in losses) or 'none'
    return f'{np.mean(losses):.4f} ± {np.std(losses, ddof=1):.4f} ({len(losses)})'
