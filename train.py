"""Trains a network with detached error feedback.

    python train.py --config=configs/digits.py --workdir=runs/digits --config.ratio=256

Run again with the same flags to resume. Exit codes: 0 finished, 2 a flag, file or folder cannot be used
(nothing was changed), 3 the loss became NaN or infinite.
"""

import os
import sys

from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file('config', None, 'File with get_config(), e.g. configs/digits.py.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run: checkpoints, metrics, curves, result.')


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        return _refuse(f'unexpected arguments {argv[1:]}; settings are given as --config.key=value')
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')  # TensorFlow only reads the data, in silence
    os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
    if not flags.FLAGS['verbosity'].present:
        logging.set_verbosity(logging.WARNING)  # orbax tells of every file it writes
    config = _CONFIG.value
    if config.get('fake_devices'):
        # More threads than cores, so that fake devices that wait for each other cannot use them all up.
        os.environ.setdefault('NPROC', '16')

    # After the environment is set: this imports JAX.
    from def_jax.training import trainer

    try:
        trainer.train_and_evaluate(config, _WORKDIR.value)
    except trainer.DivergedError as error:
        print(f'train.py: {error}', file=sys.stderr)
        return 3
    except (ValueError, FileNotFoundError) as error:
        return _refuse(error)
    return 0


def _parse_flags(argv: list[str]) -> list[str]:
    try:
        rest = flags.FLAGS(argv)
        _CONFIG.value.keys()  # a file that could not be loaded is reported on first use
        return rest
    except (flags.Error, AttributeError, KeyError, OSError, ImportError) as error:  # from config_flags
        while error.args and isinstance(error.args[0], Exception):
            error = error.args[0]  # config_flags wraps one error in another
        reason = error.args[0] if error.args and isinstance(error.args[0], str) else error
        sys.exit(_refuse(' '.join(str(reason).split()) + ' (--help lists the flags)'))


def _refuse(reason: object) -> int:
    print(f'train.py: {reason}', file=sys.stderr)
    return 2


if __name__ == '__main__':
    flags.mark_flags_as_required(['config', 'workdir'])
    app.run(main, flags_parser=_parse_flags)
