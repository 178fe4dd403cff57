"""Trains a network with detached error feedback.

    python -m def_jax.train --config=mine.py --workdir=runs/mine --config.ratio=256

The configuration file defines get_config(); those in configs/ are examples to copy, and
def_jax/trainer/configuration/defaults.py explains every key. In a checkout, `python train.py` is the same
program.

Run again with the same flags to resume, with a larger --config.num_epochs to train on, and with
--evaluate_only=SPLIT to evaluate. On several machines, start one process on each with --num_processes,
--process_id and --coordinator_address; under srun, mpirun and on TPU pods these are detected.
"""

from def_jax.tools.extras import needs_training

with needs_training('train'):
    from absl import app, flags

    from def_jax.tools.place import find
    from def_jax.trainer.launch import command_line
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
_SPLIT = flags.DEFINE_enum(
    'evaluate_only',
    None,
    ['train', 'validation', 'test'],
    'Evaluates the newest checkpoint in --workdir on this split, and neither trains nor writes.',
)


def main(argv: list[str]) -> int:
    del argv
    try:
        place = find(_ADDRESS.value, _COUNT.value, _INDEX.value)
    except ValueError as error:
        return command_line.refuse('train.py', error)
    config = _CONFIG.value
    fake = config.get('fake_devices', False)
    command_line.set_environment(fake_devices=fake, overlap=config.get('overlap', False))

    def run() -> None:
        from def_jax.trainer.loop import evaluate_only, train_and_evaluate  # after the environment is set

        if _SPLIT.value:
            evaluate_only(config, _WORKDIR.value, _SPLIT.value)
        else:
            train_and_evaluate(config, _WORKDIR.value)

    if place is None:
        return command_line.exit_code('train.py', run)
    own = 0
    if config.get('elastic') and not _SPLIT.value:
        devices = config.get('num_workers', 1) * config.get('shards_per_worker', 1)
        own = max(1, devices // (place.count or 1))
    return command_line.exit_code_of_several('train.py', run, place, fake_devices=fake, elastic_devices=own)


if __name__ == '__main__':
    flags.mark_flag_as_required('config')
    app.run(main, flags_parser=command_line.config_flags_parser('train.py', _CONFIG))
