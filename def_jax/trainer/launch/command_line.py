"""Shared by all programs: environment setup, flags with a configuration file, one-line errors."""

import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_collections
from absl import flags, logging
from ml_collections import config_flags

from def_jax.tools.place import Place
from def_jax.trainer.errors import one_line
from def_jax.trainer.launch import interruption, output, processes, supervision
from def_jax.trainer.launch.exits import EndedError, ExitCode

__all__ = [
    *('config_flags_parser', 'define_config', 'exit_code', 'exit_code_of_several', 'refuse'),
    'set_environment',
]

flags.disclaim_key_flags()  # --config belongs to the program that defines it, whose --help then lists it

_CONVERSIONS = {
    'could not convert string to float': 'a number',
    'invalid literal for int()': 'an integer',
    "'Non-boolean argument to boolean flag'": 'true or false',
}


def set_environment(*, fake_devices: bool, overlap: bool = False) -> None:
    """Sets up TensorFlow and JAX; call before either is used."""
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')  # TensorFlow only reads the data; silence its logs
    os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
    if not flags.FLAGS['verbosity'].present:
        logging.set_verbosity(logging.WARNING)
        output.hush_orbax()
    if fake_devices:
        # More threads than cores, so fake devices waiting for each other cannot exhaust the thread pool.
        os.environ.setdefault('NPROC', '16')
    elif overlap:
        # On CPUs a message in flight takes a thread, and XLA has one for each core.
        cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
        os.environ.setdefault('NPROC', str(cores + 1))
    # A resumed run need not recompile. Native code, so not in the folder of a run: it may be somebody else's.
    if 'JAX_COMPILATION_CACHE_DIR' not in os.environ and (folder := _folder_for_programs()):
        jax.config.update('jax_compilation_cache_dir', str(folder))
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)


def _folder_for_programs() -> Path | None:
    """Where compiled programs are kept; None if this user cannot write there, or somebody else can."""
    home = os.environ.get('XDG_CACHE_HOME') or os.path.join(os.path.expanduser('~'), '.cache')
    folder = Path(home) / 'def_jax' / 'compiled'
    try:
        for each in (folder.parent, folder):
            each.mkdir(mode=0o700, parents=True, exist_ok=True)
            found, owners = each.stat(), {each.stat().st_uid, each.lstat().st_uid}
            if owners != {os.geteuid()} or found.st_mode & 0o022:
                why = 'somebody else may write to it: delete it, or set JAX_COMPILATION_CACHE_DIR to another'
                logging.warning('%s is not used for compiled programs, which are run: %s', each, why)
                return None
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def define_config(text: str) -> flags.FlagHolder:
    """The flag --config=FILE, and --config.key=value for its keys and for new ones where it is not locked."""
    return config_flags.DEFINE_config_file(
        'config', None, text, lock_config=False, accept_new_attributes=True
    )


def config_flags_parser(program: str, config: flags.FlagHolder) -> Callable[[list[str]], list[str]]:
    """A `flags_parser` for `absl.app.run` that reports any error in one line, also one of the file."""

    def parse(argv: list[str]) -> list[str]:
        try:
            with warnings.catch_warnings():  # of config_flags, which `python -W error` makes an error
                warnings.filterwarnings('ignore', r'the load_module\(\) method', DeprecationWarning)
                rest = flags.FLAGS(argv)
            if flags.FLAGS[config.name].present and not isinstance(config.value, ml_collections.ConfigDict):
                getattr(config.value, 'keys', None)  # a file that failed to load raises on first use
                kind = type(config.value).__name__
                raise TypeError(f'get_config() in --{config.name} returned {kind}, not a ConfigDict')
        except Exception as error:
            sys.exit(refuse(program, _config_error(error, config.name)))
        if len(rest) > 1:
            sys.exit(refuse(program, f'unexpected arguments {rest[1:]}; set keys by --config.key=value'))
        return rest

    return parse


def _config_error(error: BaseException, flag: str) -> str:
    """Describes an error in the command line, or in a configuration file with its location."""
    chain = [error]  # config_flags wraps what a file raises, and absl wraps it again
    while inner := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(inner)
    for one in chain:
        if isinstance(one, SyntaxError) and one.filename != '<unknown>':  # a key's, not a file's
            return f'{one.filename}:{one.lineno}: SyntaxError: {one.msg}'
        places = [
            f'{frame.f_code.co_filename}:{line}'
            for frame, line in traceback.walk_tb(one.__traceback__)
            if frame.f_globals['__name__'] == f'{flag}_config'  # config_flags' name for the loaded file
        ]
        if places and not isinstance(one, flags.Error):  # an error in the text after the colon
            return f'{places[-1]}: {type(one).__name__}: {one_line(one)}'
    reason = one_line(error)
    for phrase, allowed in _CONVERSIONS.items():  # Python only says what could not be converted
        if phrase in reason:
            reason = f'{reason[: reason.index(phrase)].rstrip(": (")} must be {allowed}'
    if 'invalid syntax' in reason or reason.strip("'").isidentifier():
        reason = f'{reason} in a flag --{flag}.KEY=VALUE: that is not a known key'
    return f'{reason} (--help lists the flags)'


def exit_code(program: str, run: Callable[[], Any]) -> int:
    """The exit code of `run`; if it is not 0, the reason was printed in one line that `program` prefixes."""
    with output.lasting(program):
        try:
            with interruption.ending_at_once(program):
                run()
        except EndedError as error:
            refuse(program, error)
            return error.exit_code
        except (ValueError, OSError) as error:
            return refuse(program, one_line(error))
        return ExitCode.FINISHED


def exit_code_of_several(
    program: str, run: Callable[[], Any], place: Place, *, fake_devices: bool, elastic_devices: int = 0
) -> int:
    """Like `exit_code`, for one of several processes: `processes.connect` joins them, a loss is reported."""

    def joined() -> int:
        try:
            processes.connect(place, fake_devices=fake_devices, elastic_devices=elastic_devices)
        except ValueError as error:
            return refuse(program, one_line(error))
        code = exit_code(program, run)
        if code not in (ExitCode.REFUSED, ExitCode.PROCESS_LOST) and not elastic_devices:
            processes.disconnect()  # all processes share the other outcomes
        return code

    return supervision.supervised(program, joined)


def refuse(program: str, reason: object) -> int:
    """Prints why the program ends; returns the exit code of a refusal."""
    print(f'{program}: {reason}', file=sys.stderr)
    return ExitCode.REFUSED
