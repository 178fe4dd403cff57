"""The pages of the site: their code runs, their pictures exist, and no public name is missing from the reference."""

import re
from pathlib import Path

import jax
import pytest

import def_jax

DOCS = Path(__file__).parents[2] / 'docs'
PAGES = [page for page in sorted(DOCS.rglob('*.md')) if '```python' in page.read_text()]


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_code_runs(page):
    """Its Python blocks, in order, as one program; most of them assert what the text says."""
    blocks = re.findall(r'```python\n(.*?)```', page.read_text(), re.DOTALL)
    exec(compile('\n'.join(blocks), str(page), 'exec'), {'__name__': page.stem})
    jax.effects_barrier()


def test_every_public_name_is_in_the_reference():
    reference = '\n'.join(page.read_text() for page in (DOCS / 'api').glob('*.md'))
    documented = set(re.findall(r'^\.\. (?:auto\w+|py:data):: def_jax\.(\w+)$', reference, re.MULTILINE))
    assert documented == set(def_jax.__all__)
