"""The code that newcomers copy: README's program, the how-to's steps and the example run as they stand."""

import itertools
import re
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


def names_of(page):
    """The names that the page's Python blocks define, run in order."""
    names = {}
    for block in re.findall(r'```python\n(.*?)```', (ROOT / page).read_text(), re.DOTALL):
        exec(block, names)
    return names


def test_the_program_of_readme_learns(capsys):
    names = names_of('README.md')
    assert float(names['error']) < 0.05
    assert 'distance to the solution' in capsys.readouterr().out


def test_pmapped_and_sharded_step_of_the_how_to_train_and_agree():
    page = names_of('docs/how_to/own_loop.md')
    workers = jax.device_count()
    images = jax.random.normal(jax.random.key(0), (workers, 8, 16))
    params, batch = {'w': jnp.zeros((16, 4)), 'b': jnp.zeros(4)}, (images, images[..., :4].argmax(-1))
    stacked = jax.pmap(lambda _: (params, page['optimizer'].init(params)))(np.arange(workers))
    pmapped, opt_state = stacked
    sharded = params
    sharded_state = jax.tree.map(lambda x, mine: np.asarray(x if mine else x[0]), opt_state, page['own'])
    flat_batch = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)
    for _ in range(20):
        pmapped, opt_state = page['train_step'](pmapped, opt_state, batch)
        sharded, sharded_state = page['sharded_step'](sharded, sharded_state, flat_batch)
        jax.block_until_ready((pmapped, sharded))
    final = page['final'](pmapped, opt_state)
    first = jax.tree.map(lambda x: np.asarray(x)[0], (pmapped, final))
    np.testing.assert_allclose(first[0]['w'], sharded['w'], rtol=1e-5, atol=1e-7)
    assert page['loss_fn'](first[1], flat_batch) < page['loss_fn'](params, flat_batch)


@pytest.mark.slow
def test_example_learns(monkeypatch):
    example = runpy.run_path(str(ROOT / 'examples' / 'mlp.py'))
    assert jax.device_count() >= example['NUM_WORKERS']
    assert example['main'](num_steps=300) > 0.9


@pytest.mark.slow
def test_example_of_sharded_nodes_learns():
    example = runpy.run_path(str(ROOT / 'examples' / 'fsdp.py'))
    assert example['main'](num_steps=150) < 3.0  # nats a byte; a uniform guess has 5.5


def table(file, start):
    """The rows of the first table whose heading starts so, by column, without bold."""
    lines = itertools.dropwhile(lambda line: not line.startswith(start), file.read_text().splitlines())
    heading, _, *rows = [
        [text.strip(' *') for text in line.split('|')[1:-1]]
        for line in itertools.takewhile(lambda line: line.startswith('|'), lines)
    ]
    for above, row in itertools.pairwise(rows):
        row[0] = row[0] or above[0]
    return [dict(zip(heading, row, strict=True)) for row in rows]


def numbers(rows):
    """Their texts by ratio, whose they are, and method."""
    methods = ('SGD', 'EF', 'SAEF', 'PSync', 'DEF', 'DEF-A')
    return {(row['ratio'], row.get('', 'ours'), method): row[method] for row in rows for method in methods}


def test_the_tables_are_those_of_the_results():
    digits, cifar = (
        numbers(table(ROOT / 'results' / name / 'README.md', '| ratio |  |'))
        for name in ('table1_digits_recalibrated', 'cifar10')
    )
    site = ROOT / 'docs/paper_tables.md'
    on_digits, on_cifar = (numbers(table(site, start)) for start in ('| ratio |  |', '| ratio | visits'))
    assert len(on_digits) == 12 * 6 and on_digits.items() <= digits.items()
    assert len(on_cifar) == 4 * 6 and on_cifar.items() <= cifar.items()
    readme = table(ROOT / 'README.md', '| data |')
    for name, page in (('CIFAR-10', cifar), ('digits', digits)):
        shown = numbers(row for row in readme if row['data'] == name)
        assert len(shown) >= 3 * 6 and shown.items() <= page.items()


def test_the_columns_of_ours_and_table_4_are_those_of_the_results():
    ours = {'ours, y': 'DEF, ours, balanced', 'ours, x': 'DEF-A, ours, balanced'}
    here = {row['ratio']: row for row in table(ROOT / 'results/cifar10/README.md', '| ratio |  |')}
    site = ROOT / 'docs/paper_tables.md'
    for row in table(site, '| ratio | visits'):
        assert all(row[short] == here[row['ratio']][name] for short, name in ours.items())
    found = table(ROOT / 'results/table4_digits_tuned/README.md', '| λ |  |')
    by_detach, papers = ({r['λ']: r for r in found if r[''] == whose} for whose in ('ours', 'paper'))
    at_64, paper, at_256 = table(site, '| λ | 0 |')
    for detach in ('0', '0.1', '0.2', '0.3', '0.4', '0.6', '0.8', '1'):
        row = by_detach[f'{float(detach)}']
        assert (at_64[detach], at_256[detach]) == (row['DEF'], row['DEF, ratio 256'])
        assert paper[detach] == papers.get(detach, {'DEF': ''})['DEF']


def test_readme_is_short():
    assert len((ROOT / 'README.md').read_text().splitlines()) <= 150
