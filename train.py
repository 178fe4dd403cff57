"""Trains a network with detached error feedback.

    python train.py --config=configs/digits.py --workdir=runs/digits --config.ratio=256

Run again with the same flags to resume. On several machines, start one process on each with --num_processes,
--process_id and --coordinator_address; under srun, mpirun and on TPU pods these are found.

Exit codes: 0 finished; 2 a flag, file or folder cannot be used, or a disk is full (what was there is kept);
3 the loss became NaN or infinite; 4 stopped by SIGTERM or Ctrl-C, the checkpoint is written; 5 workers that
should agree do not (--config.check_replicas_every); 6 another process of the run was lost.
"""

from absl import app, flags
from ml_collections import config_flags

from def_jax.launch import command_line, processes

_CONFIG = config_flags.DEFINE_config_file('config', None, 'File with get_config(), e.g. configs/digits.py.')
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Folder of the run: checkpoints, metrics, curves, result. Shared by all processes.'
)
_ADDRESS = flags.DEFINE_string(
    'coordinator_address', None, 'HOST:PORT where process 0 can be reached by all.'
)
_COUNT = flags.DEFINE_integer('num_processes', None, 'How many processes train together.')
_INDEX = flags.DEFINE_integer('process_id', None, 'Which of them this is, from 0.')


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        return _refuse(f'unexpected arguments {argv[1:]}; settings are given as --config.key=value')
    try:
        place = processes.find(_ADDRESS.value, _COUNT.value, _INDEX.value)
    except ValueError as error:
        return _refuse(error)
    fake_devices = _CONFIG.value.get('fake_devices', False)
    command_line.set_environment(_WORKDIR.value, fake_devices=fake_devices)

    def run() -> None:
        # After the environment is set: this imports TensorFlow.
        from def_jax.training import loop

        loop.train_and_evaluate(_CONFIG.value, _WORKDIR.value)

    if place is None:
        return command_line.exit_code('train.py', run)
    return command_line.exit_code_of_several('train.py', run, place, fake_devices=fake_devices)


def _refuse(reason: object) -> int:
    return command_line.refuse('train.py', reason)


if __name__ == '__main__':
    flags.mark_flags_as_required(['config', 'workdir'])
    app.run(main, flags_parser=command_line.config_flags_parser('train.py', _CONFIG))
