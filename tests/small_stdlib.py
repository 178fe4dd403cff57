"""The standard library of a small Python."""

import functools
from pathlib import Path

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
def written(folder: Path) -> Path:
    """The library, in a folder of the tests."""
    library = folder / 'small_python'
    for name, text in FILES.items():
        (library / name).parent.mkdir(parents=True, exist_ok=True)
        (library / name).write_bytes(text)
    return library
