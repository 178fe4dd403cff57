"""The standard library of a small Python, as a prepared data set."""

import functools
from pathlib import Path
from unittest import mock

from def_jax.trainer.data import in_memory
from def_jax.trainer.data.text import catalogue, stdlib

FILES = {
    **{
        f'{name}.py': f'# {name}\n'.encode()
        for name in ('abc', 'bdb', 'cmd', 'json/decoder', 'datetime', 'operator')
    },
    'ast.py': b''.join(f'def f{i}(x):\n    return x + {i}\n'.encode() for i in range(20)),
    'shutil.py': b'# shutil\r\n',
    'latin.py': b'# -*- coding: latin-1 -*-\n# \xfc\n',
    'empty.py': b'',
    'test/test_abc.py': b'# excluded',
    'site-packages/numpy/numpy.py': b'# excluded',
    'config-3.11-x86_64-linux-gnu/python-config.py': b'# excluded',
    '_sysconfigdata__linux_x86_64-linux-gnu.py': b'# excluded',
    'readme.txt': b'excluded',
}


@functools.cache
def prepared(folder: Path) -> Path:
    """TFDS's directory with the data set `python_stdlib`, in a folder of the tests."""
    library, data_dir = folder / 'small_python', folder / 'small_python_data'
    for name, text in FILES.items():
        (library / name).parent.mkdir(parents=True, exist_ok=True)
        (library / name).write_bytes(text)
    in_memory.import_tfds()  # which asks for Python's paths itself
    with mock.patch.object(stdlib.sysconfig, 'get_path', lambda name: str(library)):
        catalogue.TEXTS['python_stdlib'](data_dir, context=4)
    return data_dir
