"""What the programs share: the environment, flags with a configuration file, errors in one line.

`def_jax.launch.exits` lists the exit codes.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import jax
from absl import flags, logging

from def_jax.launch import processes, supervision
from def_jax.launch.exits import EndedError, ExitCode

__all__ = ['config_flags_parser', 'exit_code', 'exit_code_of_several', 'refuse', 'set_environment']


def set_environment(workdir: str, *, fake_devices: bool) -> None:
    """Sets up TensorFlow and JAX; call before either is used.

    Args:
        workdir: gets JAX's compilation cache, so that a run which is resumed does not compile again. Where
            JAX_COMPILATION_CACHE_DIR is set, that is used.
        fake_devices: whether the devices are simulated on this CPU.
    """
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')  # TensorFlow only reads the data, in silence
    os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
    if not flags.FLAGS['verbosity'].present:
        logging.set_verbosity(logging.WARNING)  # orbax tells of every file it writes
    if fake_devices:
        # More threads than cores, so that fake devices that wait for each other cannot use them all up.
        os.environ.setdefault('NPROC', '16')
    if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
        jax.config.update('jax_compilation_cache_dir', os.path.join(workdir, 'compilation_cache'))
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)


def config_flags_parser(program: str, config: flags.FlagHolder) -> Callable[[list[str]], list[str]]:
    """Returns a `flags_parser` for `absl.app.run` that ends with one line where a flag or file is wrong.

    Args:
        program: the name that the line begins with.
        config: what `config_flags.DEFINE_config_file` returned.

    Returns:
        A function from the command line to the arguments that are no flags.
    """

    def parse(argv: list[str]) -> list[str]:
        try:
            rest = flags.FLAGS(argv)
            if config.value is not None:
                config.value.keys()  # a file that could not be loaded is reported on first use
            return rest
        except (
            flags.Error,
            LookupError,
            AttributeError,
            TypeError,
            ValueError,
            OSError,
            ImportError,
        ) as error:
            cause: Exception = error
            while cause.args and isinstance(cause.args[0], Exception):
                cause = cause.args[0]  # config_flags wraps one error in another
            reason = cause.args[0] if cause.args and isinstance(cause.args[0], str) else cause
            sys.exit(refuse(program, ' '.join(str(reason).split()) + ' (--help lists the flags)'))

    return parse


def exit_code(program: str, run: Callable[[], Any]) -> int:
    """Calls `run`.

    Args:
        program: the name that a line of error begins with.
        run: the program's work. From here on SIGTERM interrupts it as Ctrl-C does.

    Returns:
        The exit code; where it is not 0, the reason has been printed in one line.
    """

    def interrupt(number: int, frame: Any) -> NoReturn:
        del number, frame
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        run()
    except KeyboardInterrupt:  # outside of the training loop, or for the second time
        print(f'{program}: stopped. Run the same command again to resume.', file=sys.stderr)
        return ExitCode.STOPPED
    except EndedError as error:
        print(f'{program}: {error}', file=sys.stderr)
        return error.exit_code
    except (ValueError, OSError) as error:
        return refuse(program, ' '.join(str(error).split()))
    return ExitCode.FINISHED


def exit_code_of_several(
    program: str, run: Callable[[], Any], place: processes.Place, *, fake_devices: bool
) -> int:
    """Like `exit_code` for one of several processes: joins the others, and tells where one is lost.

    Args:
        program: the name that a line of error begins with.
        run: the program's work.
        place: which of the processes this is.
        fake_devices: whether the devices are simulated on the processes' CPUs.

    Returns:
        The exit code.
    """

    def joined() -> int:
        try:
            processes.connect(place, fake_devices=fake_devices)
        except ValueError as error:
            return refuse(program, ' '.join(str(error).split()))
        code = exit_code(program, run)
        if code not in (ExitCode.REFUSED, ExitCode.PROCESS_LOST):  # other endings are those of all processes
            processes.disconnect()
        return code

    return supervision.supervised(program, joined)


def refuse(program: str, reason: object) -> int:
    """Says why the program ends before it has changed anything; the exit code."""
    print(f'{program}: {reason}', file=sys.stderr)
    return ExitCode.REFUSED
