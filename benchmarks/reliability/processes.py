"""train.py as a process of its own: started, watched, killed; and what it leaves, bit for bit."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from def_jax.elastic.network import free_address
from def_jax.ground.arguments import leaf_names
from def_jax.trainer import metrics

ROOT = Path(__file__).resolve().parents[2]
SMALL_MODEL = '--config.model=benchmarks.reliability.small_model:Perceptron'  # soon compiled
SMALL = ['--config=configs/digits.py', SMALL_MODEL]


def start(folder: Path, flags: list[str], environment: dict[str, str], name: str = '') -> subprocess.Popen:
    """train.py in a folder; what it prints is appended to FOLDER.log, or FOLDER with a name.log."""
    command = [sys.executable, 'train.py', *flags, f'--workdir={folder}']
    with folder.with_name(f'{folder.name}{name}.log').open('a') as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


def ran(
    flags: list[str], environment: dict[str, str], *program: str, seconds: float = 900
) -> subprocess.CompletedProcess:
    """A program, train.py if none is given, when it has ended; with what it printed."""
    command = [sys.executable, *(program or ('train.py',)), *flags]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds)


def start_several(
    folder: Path, flags: list[str], environment: dict[str, str], count: int = 2
) -> list[subprocess.Popen]:
    """Processes of train.py that train together, or just one; their logs are FOLDER-0.log and so on."""
    if count == 1:
        return [start(folder, flags, environment, '-0')]
    flags = [*flags, f'--coordinator_address={free_address()}', f'--num_processes={count}']
    return [start(folder, [*flags, f'--process_id={i}'], environment, f'-{i}') for i in range(count)]


def checkpoint_steps(folder: Path) -> list[int]:
    """The steps of the complete checkpoints."""
    checkpoints = folder / 'checkpoints'
    names = os.listdir(checkpoints) if checkpoints.is_dir() else []
    return sorted(int(name) for name in names if name.isdigit())


def wait_for(process: subprocess.Popen, condition, seconds: float = 900) -> bool:
    """Waits until `condition()`; False if the process ends first."""
    deadline = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None:
            return False
        if time.monotonic() > deadline:
            process.kill()
            raise TimeoutError(f'nothing happened for {seconds} s')
        time.sleep(0.001)
    return True


def is_writing(folder: Path, since: float) -> bool:
    """Whether a checkpoint is being written at this moment, by a process that started at `since`."""
    try:
        partial = [path for path in (folder / 'checkpoints').iterdir() if path.name.endswith('.partial')]
        return any(path.stat().st_ctime > since for path in partial)  # an older one is what a kill has left
    except FileNotFoundError:
        return False


def log_size(folder: Path) -> int:
    """Bytes in metrics.jsonl: changes when something is recorded, or a start drops what comes later."""
    path = folder / 'metrics.jsonl'
    return path.stat().st_size if path.exists() else 0


def kill(process: subprocess.Popen) -> bool:
    """SIGKILL; False if the process had ended before."""
    process.kill()
    return process.wait() == -signal.SIGKILL


def save(report: Any, folder: Path | None, name: str) -> None:
    """Prints a report, and writes it to a file of the folder, if one is given."""
    print(json.dumps(report, indent=2))
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(report, indent=2) + '\n')


def final_state(folder: Path) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint, by its name, as it was saved."""
    return saved_state(folder, checkpoint_steps(folder)[-1])


def saved_state(folder: Path, step: int) -> dict[str, np.ndarray]:
    """Every array of the checkpoint of a step."""
    path = folder / 'checkpoints' / str(step) / 'state'
    with ocp.StandardCheckpointer() as checkpointer:
        saved = checkpointer.metadata(path).item_metadata.tree
        target = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), saved)
        state = checkpointer.restore(path, target)
    return dict(zip(leaf_names(state), map(np.asarray, jax.tree.leaves(state)), strict=True))


def differences(folder: Path, reference: Path) -> list[str]:
    """What differs between the ends of two runs: arrays by name, or the records of their metrics."""
    ours, theirs = final_state(folder), final_state(reference)
    names = [
        name
        for name in sorted(ours.keys() | theirs.keys())
        if name not in ours or name not in theirs or ours[name].tobytes() != theirs[name].tobytes()
    ]
    return names + (['metrics.jsonl'] if records(folder) != records(reference) else [])


def records(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what measures time, and without what was pending at an interruption."""
    kept = [r for r in metrics.read(folder / 'metrics.jsonl') if 'pending' not in r]
    return [{k: v for k, v in r.items() if k not in ('seconds', 'images_per_second')} for r in kept]
