"""The code that newcomers copy: README's blocks and the example run as they stand."""

import re
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def readme():
    """The names that README's Python blocks define, run in order."""
    names = {}
    for block in re.findall(r'```python\n(.*?)```', (ROOT / 'README.md').read_text(), re.DOTALL):
        exec(block, names)
    return names


@pytest.fixture
def problem():
    workers = jax.device_count()
    images = jax.random.normal(jax.random.key(0), (workers, 8, 16))
    return {'w': jnp.zeros((16, 4)), 'b': jnp.zeros(4)}, (images, images[..., :4].argmax(-1))


def test_pmapped_step_of_readme_trains_and_agrees_with_the_sharded_one(readme, problem):
    params, batch = problem
    workers = jax.device_count()
    stacked = jax.pmap(lambda _: (params, readme['optimizer'].init(params)))(np.arange(workers))
    pmapped, opt_state = stacked
    sharded, sharded_state = params, jax.tree.map(np.asarray, opt_state)
    flat_batch = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)
    for _ in range(20):
        pmapped, opt_state = readme['train_step'](pmapped, opt_state, batch)
        sharded, sharded_state = readme['sharded_step'](sharded, sharded_state, flat_batch)
        jax.block_until_ready((pmapped, sharded))
    final = readme['final'](pmapped, opt_state)
    first = jax.tree.map(lambda x: np.asarray(x)[0], (pmapped, final))
    np.testing.assert_allclose(first[0]['w'], sharded['w'], rtol=1e-5, atol=1e-7)
    whole = (flat_batch[0], flat_batch[1])
    assert readme['loss_fn'](first[1], whole) < readme['loss_fn'](params, whole)


@pytest.mark.slow
def test_example_learns(monkeypatch):
    example = runpy.run_path(str(ROOT / 'examples' / 'mlp.py'))
    assert jax.device_count() >= example['NUM_WORKERS']
    assert example['main'](num_steps=300) > 0.9


def test_the_table_is_that_of_the_results():
    page = (ROOT / 'results/table1_digits/README.md').read_text()
    rows = [line for line in page.splitlines() if re.match(r'\| \d* \| (ours|paper) \|', line)]
    readme = (ROOT / 'README.md').read_text()
    assert len(rows) == 12 and all(row in readme for row in rows)


def test_links_and_pictures_are_there():
    for document in (ROOT / 'README.md', ROOT / 'results/README.md', *(ROOT / 'docs').glob('*.md')):
        targets = re.findall(r'\]\(([^)#:]+)\)', document.read_text())
        assert targets, f'no link found in {document.name}'
        for target in targets:
            assert (document.parent / target).exists(), f'{document.name} links to {target}'
