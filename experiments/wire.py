"""The true compression of runs: of the bytes of a float32 all-reduce, what their programs pass.

Stated compressions count elements; units, places, zeros and messages that all gather come on top. What a
program passes follows from no record: `python -m experiments bytes` traces the programs of finished methods
whose data sets are at hand, and keeps what it finds in results/compression.jsonl, from which pages take it.
"""

import dataclasses
import functools
import json
import sys
from collections.abc import Iterable
from pathlib import Path

from experiments.spec import Spec

__all__ = ['PATH', 'known', 'measured', 'update']

PATH = Path(__file__).parents[1] / 'results' / 'compression.jsonl'


def measured(spec: Spec) -> float:
    """Bytes of dense training's float32 all-reduces over those that pass a worker's link in a run.

    Collectives go around in rings: a reduced message passes 2(K - 1) / K times, and one that all gather K - 1
    times.
    """
    from def_jax.trainer import experiment as trainer  # not to read what is known
    from experiments import methods

    made = trainer.build(methods.configured(dataclasses.replace(spec, rate=1.0)))
    sent = made.on_the_wire
    return made.num_steps * sent.dense_bytes_per_step / 1e6 / sent.megabytes_sent(made.num_steps)


def known(spec: Spec) -> float | None:
    """The compression of a run, if it is on file."""
    return _file().get(_key(spec))


def update(specs: Iterable[Spec]) -> None:
    """Puts on file what is not; what needs a data set that is not here is left out, with a line."""
    for spec in specs:
        if known(spec) is None:
            try:
                found = {**_file(), _key(spec): float(f'{measured(spec):.4g}')}
            except (ValueError, OSError) as error:
                print(f'{_key(spec)}: {error}', file=sys.stderr)
                continue
            lines = [
                json.dumps({'program': json.loads(key), 'compression': found[key]}) for key in sorted(found)
            ]
            PATH.write_text('\n'.join(lines) + '\n', encoding='utf-8')
            _file.cache_clear()


def _key(spec: Spec) -> str:
    return dataclasses.replace(spec, rate=0.0, seed=0, evaluate_on='test', revision='').key


@functools.cache
def _file() -> dict[str, float]:
    lines = PATH.read_text(encoding='utf-8').splitlines() if PATH.exists() else []
    found = map(json.loads, lines)
    return {json.dumps(each['program'], sort_keys=True): each['compression'] for each in found}
