"""The pages of the site: their code runs, their links lead somewhere, and every public name is on one."""

import inspect
import re
from pathlib import Path

import jax
import pytest
from figures import has

import def_jax
from def_jax.tools.planner import Plan

DOCS = Path(__file__).parents[2] / 'docs'
PAGES = [page for page in sorted(DOCS.rglob('*.md')) if '```python' in page.read_text()]
PAGES.remove(DOCS / 'first_steps.md')  # half a minute: test_readme.py runs it


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_code_runs(page):
    """Its Python blocks, in order, as one program; most of them assert what the text says."""
    blocks = re.findall(r'```python\n(.*?)```', page.read_text(), re.DOTALL)
    exec(compile('\n'.join(blocks), str(page), 'exec'), {'__name__': page.stem})
    jax.effects_barrier()


def test_every_public_name_is_in_the_reference():
    reference = '\n'.join(page.read_text() for page in (DOCS / 'api').glob('*.md'))
    entry = r'^\.\. (?:autofunction|autoclass|py:data):: def_jax\.(\w+)$'
    names = {name for name in def_jax.__all__ if not inspect.ismodule(getattr(def_jax, name))}
    assert set(re.findall(entry, reference, re.MULTILINE)) == names


DOCUMENTS = [DOCS.parent / 'README.md', DOCS.parent / 'CONTRIBUTING.md', DOCS.parent / 'results/README.md']
DOCUMENTS += [page for page in sorted(DOCS.rglob('*.md')) if '_build' not in page.parts]


@pytest.mark.parametrize('document', DOCUMENTS, ids=lambda page: str(page.relative_to(DOCS.parent)))
def test_links_and_pictures_are_there(document):
    text = document.read_text()
    for target in re.findall(r'\]\(([^)#:]+)(?:#[^)]*)?\)', text):
        assert (document.parent / target).exists(), f'{document.name} links to {target}'
    tests = {path.name for path in (DOCS.parent / 'tests').rglob('*.py')}
    assert set(re.findall(r'\btest_\w+\.py', text)) <= tests


def test_what_leaves_a_node_is_as_the_page_of_pmap_says():
    nodes = Plan(params=25.6e6, step_time=0.1, bandwidth=1e10, workers=2, gpus_per_link=8)
    size = 4 * nodes.params
    assert nodes.ring(size) == size  # the whole gradient once
    inside, without = (size / nodes.halves(size / 64, flat) for flat in (False, True))
    assert has(DOCS / 'how_to/pmap_trainers.md', f'1/{inside:.0f}', f'1/{without:.0f}')


@pytest.mark.parametrize('recipe', sorted((DOCS / 'recipes').glob('[!i]*.md')), ids=lambda page: page.stem)
def test_the_lines_of_a_recipe_are_those_of_its_program(recipe):
    program = (DOCS.parent / f'examples/recipes/{recipe.stem}.py').read_text()
    blocks = re.findall(r'```py\n(.*?)```', recipe.read_text(), re.DOTALL)
    assert blocks and all(block in program for block in blocks)


def test_the_examples_change_as_many_lines_as_the_page_says():
    page = (DOCS / 'how_to/your_trainer.md').read_text()
    rows = re.findall(r'\(\.\./\.\./(examples/\w+\.py)\) \| (\d+) \|', page)
    assert len(rows) >= 5
    for example, lines in rows:
        assert (DOCS.parent / example).read_text().count('# was: ') == int(lines), example
