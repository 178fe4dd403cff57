"""Trains a network with detached error feedback.

    python -m def_jax.train --config=mine.py --workdir=runs/mine --config.ratio=256

The configuration file defines get_config(); those in configs/ are examples to copy, and
def_jax/trainer/configuration/defaults.py explains every key. In a checkout, `python train.py` is the same
program.

Run again with the same flags to resume. On several machines, start one process on each with --num_processes,
--process_id and --coordinator_address; under srun, mpirun and on TPU pods these are detected.
"""

from typing import Any

from def_jax.tools.extras import needs_training

with needs_training('train'):
    from absl import app, flags

    from def_jax.trainer.launch import command_line, processes
    from def_jax.trainer.launch.exits import EXIT_CODES

__doc__ = f'{__doc__}\n{EXIT_CODES}'  # --help prints it

_CONFIG = command_line.define_config('File with get_config(), e.g. configs/digits.py.')
_WORKDIR = flags.DEFINE_string(
    'workdir',
    None,
    'Folder of the run: checkpoints, metrics, curves, result. Shared by all processes.',
    required=True,
)
_ADDRESS = flags.DEFINE_string(
    'coordinator_address', None, 'HOST:PORT at which all processes reach process 0.'
)
_COUNT = flags.DEFINE_integer('num_processes', None, 'How many processes train together.')
_INDEX = flags.DEFINE_integer('process_id', None, 'Index of this process, from 0.')


def main(argv: list[str]) -> int:
    del argv
    try:
        place = processes.find(_ADDRESS.value, _COUNT.value, _INDEX.value)
    except ValueError as error:
        return command_line.refuse('train.py', error)
    fake_devices, overlap = (_CONFIG.value.get(name, False) for name in ('fake_devices', 'overlap'))
    command_line.set_environment(fake_devices=fake_devices, overlap=overlap)

    def run() -> None:
        # After the environment is set: this imports TensorFlow.
        from def_jax.trainer import loop

        loop.train_and_evaluate(_CONFIG.value, _WORKDIR.value)

    if place is None:
        return command_line.exit_code('train.py', run)
    return command_line.exit_code_of_several(
        'train.py',
        run,
        place,
        fake_devices=fake_devices,
        elastic_devices=num_devices(_CONFIG.value, place.count) if _CONFIG.value.get('elastic') else 0,
    )


def num_devices(config: Any, count: int | None) -> int:
    """How many devices each of `count` processes trains on."""
    return max(1, config.get('num_workers', 1) * config.get('shards_per_worker', 1) // (count or 1))


if __name__ == '__main__':
    flags.mark_flag_as_required('config')
    app.run(main, flags_parser=command_line.config_flags_parser('train.py', _CONFIG))
