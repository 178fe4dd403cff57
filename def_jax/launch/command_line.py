"""What the programs share: the environment, flags with a configuration file, errors in one line.

`def_jax.launch.exits` lists the exit codes.
"""

import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
from absl import flags, logging

from def_jax.launch import interruption, output, processes, supervision
from def_jax.launch.exits import EndedError, ExitCode

__all__ = [
    'config_flags_parser',
    'exit_code',
    'exit_code_of_several',
    'refuse',
    'set_environment',
]

_CONVERSIONS = {
    'could not convert string to float': 'a number',
    'invalid literal for int()': 'an integer',
    "'Non-boolean argument to boolean flag'": 'true or false',
}


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
        logging.set_verbosity(logging.WARNING)
        output.hush_orbax()
    if fake_devices:
        # More threads than cores, so that fake devices that wait for each other cannot use them all up.
        os.environ.setdefault('NPROC', '16')
    if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
        jax.config.update(
            'jax_compilation_cache_dir', os.path.join(os.path.expanduser(workdir), 'compilation_cache')
        )
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)


def config_flags_parser(program: str, config: flags.FlagHolder) -> Callable[[list[str]], list[str]]:
    """Returns a `flags_parser` for `absl.app.run` that ends with one line where something is wrong.

    Args:
        program: the name that the line begins with.
        config: what `config_flags.DEFINE_config_file` returned. The file may contain anything.

    Returns:
        A function from the command line to the program's name; arguments that are no flags are refused.
    """

    def parse(argv: list[str]) -> list[str]:
        try:
            rest = flags.FLAGS(argv)
            if flags.FLAGS[config.name].present and not isinstance(config.value, ml_collections.ConfigDict):
                getattr(config.value, 'keys', None)  # a file that could not be loaded says so on first use
                kind = type(config.value).__name__
                raise TypeError(f'get_config() in --{config.name} returned {kind}, not a ConfigDict')
        except Exception as error:
            sys.exit(refuse(program, _config_error(error, config.name)))
        if len(rest) > 1:
            reason = f'unexpected arguments {rest[1:]}; settings are given as --config.key=value'
            sys.exit(refuse(program, reason))
        return rest

    return parse


def _config_error(error: BaseException, flag: str) -> str:
    """What is wrong with a command line, or in a configuration file and where."""
    chain = [error]  # config_flags wraps what a file raises, and absl wraps that once more
    while inner := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(inner)
    for one in chain:
        if isinstance(one, SyntaxError) and one.filename != '<unknown>':  # a key's, not a file's
            return f'{one.filename}:{one.lineno}: SyntaxError: {one.msg}'
        places = [
            f'{frame.f_code.co_filename}:{line}'
            for frame, line in traceback.walk_tb(one.__traceback__)
            if frame.f_globals['__name__'] == f'{flag}_config'  # as config_flags calls the loaded file
        ]
        if places and not isinstance(one, flags.Error):  # which tells of an argument of the file's
            return f'{places[-1]}: {type(one).__name__}: {_one_line(one)}'
    return f'{_allowed(_one_line(error), flag)} (--help lists the flags)'


def _allowed(reason: str, flag: str) -> str:
    """What a flag may be, where Python's reason only tells what could not be converted."""
    for phrase, allowed in _CONVERSIONS.items():
        if phrase in reason:
            return f'{reason[: reason.index(phrase)].rstrip(": (")} must be {allowed}'
    if 'invalid syntax' in reason or reason.strip("'").isidentifier():
        return f'{reason} in a flag --{flag}.KEY=VALUE: that is not a known key'
    return reason


def _one_line(error: BaseException) -> str:
    while error.args and isinstance(error.args[0], Exception):  # as config_flags puts one into another
        error = error.args[0]
    quoted = isinstance(error, LookupError) and error.args and isinstance(error.args[0], str)
    return ' '.join(str(error.args[0] if quoted else error).split())


def exit_code(program: str, run: Callable[[], Any]) -> int:
    """Calls `run`.

    Args:
        program: the name that a line of error begins with.
        run: the program's work. SIGTERM, SIGHUP and Ctrl-C end the process, see `interruption`.

    Returns:
        The exit code; where it is not 0, the reason has been printed in one line.
    """
    with output.lasting(program):
        try:
            with interruption.ending_at_once(program):
                run()
        except EndedError as error:
            print(f'{program}: {error}', file=sys.stderr)
            return error.exit_code
        except (ValueError, OSError) as error:
            return refuse(program, _one_line(error))
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
            return refuse(program, _one_line(error))
        code = exit_code(program, run)
        if code not in (ExitCode.REFUSED, ExitCode.PROCESS_LOST):  # other endings are those of all processes
            processes.disconnect()
        return code

    return supervision.supervised(program, joined)


def refuse(program: str, reason: object) -> int:
    """Says why the program ends before it has changed anything; the exit code."""
    print(f'{program}: {reason}', file=sys.stderr)
    return ExitCode.REFUSED
