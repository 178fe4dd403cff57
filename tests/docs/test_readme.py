"""The code that newcomers copy: README's program, the how-to's steps and the example run as they stand."""

import itertools
import re
import runpy
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from configs.digits import get_config
from def_jax import METHODS
from def_jax.trainer import experiment
from def_jax.trainer.configuration.rules import check_config
from def_jax.trainer.data import order

ROOT = Path(__file__).parents[2]
FRONT = ('README.md', 'docs/index.md')


def names_of(page):
    """The names that the page's Python blocks define, run in order."""
    names = {}
    for block in re.findall(r'```python\n(.*?)```', (ROOT / page).read_text(), re.DOTALL):
        exec(block, names)
    return names


@pytest.mark.slow
def test_the_program_of_readme_shows_what_it_says(capsys):
    """At one rate, error feedback diverges and DEF ends where dense training does."""
    names_of('README.md')
    printed = capsys.readouterr().out.splitlines()
    dense, without, detached = (float(line.rpartition(' ')[2]) for line in printed)
    assert detached < 1.2 * dense < 0.1
    assert not without < 1


def test_the_landing_page_has_the_program_of_readme():
    programs = [re.findall(r'```python\n(.*?)```', (ROOT / page).read_text(), re.DOTALL) for page in FRONT]
    assert programs[0] == programs[1] and len(programs[0]) == 1


def test_pmapped_and_sharded_step_of_the_how_to_train_and_agree():
    page = names_of('docs/how_to/own_loop.md')
    start, optimizer, flat_batch = page['start'], page['optimizer'], page['flat_batch']
    pmapped, opt_state = jax.pmap(lambda _: (start, optimizer.init(start)))(np.arange(jax.device_count()))
    sharded, sharded_state = start, page['stacked']
    for _ in range(5):
        pmapped, opt_state = page['train_step'](pmapped, opt_state, page['batch'])
        sharded, sharded_state = page['sharded_step'](sharded, sharded_state, flat_batch)
        jax.block_until_ready((pmapped, sharded))
    y = page['final'](pmapped, opt_state)
    x, y = jax.tree.map(lambda leaf: np.asarray(leaf)[0], (pmapped, y))
    np.testing.assert_allclose(x['w'], sharded['w'], rtol=1e-5, atol=1e-7)
    assert page['loss_fn'](y, flat_batch) < page['loss_fn'](start, flat_batch)


@pytest.mark.slow
def test_example_learns():
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
    for front, least in (('README.md', 3 * 6), ('docs/results.md', 3 * 6)):
        rows = table(ROOT / front, '| data |')
        for name, page in (('CIFAR-10', cifar), ('digits', digits)):
            shown = numbers(row for row in rows if row['data'] == name)
            assert len(shown) >= least and shown.items() <= page.items()


@pytest.mark.parametrize('front', FRONT)
def test_the_sentences_of_the_front_page_are_those_of_the_results(front):
    text = ' '.join((ROOT / front).read_text().split())
    cells = numbers(table(ROOT / 'results/cifar10/README.md', '| ratio |  |'))
    kept, of = (float(cells[ratio, 'ours', name].split()[0]) for ratio, name in (('64', 'DEF'), ('1', 'SGD')))
    assert f"At 1/64 DEF keeps {kept:.1f} of SGD's {of:.1f} %" in text
    page = (ROOT / 'results/benchmarks/time_to_accuracy.md').read_text()
    ours = (
        r'\| DEF, bytes of ratio 64 in int8, [^|]*momentum \|.*?\| (\d+) ± \d+ \|.*?'
        r'\| (\d+\.\d+) \[(\d+\.\d+), (\d+\.\d+)\]'
    )
    dense = [float(ms) for ms in re.findall(r'\| SGD, dense JAX \|.*?\| (\d+) ± \d+ \|', page)]
    found = [list(map(float, numbers)) for numbers in re.findall(ours, page)]
    factors = [(factor, ms) for ms, factor, *_ in found]
    (_, *fast), (_, *slow) = found
    with_intervals = 'reaches {:.1f} [{:.1f}, {:.1f}] and {:.0f} [{:.0f}, {:.0f}]'.format(*fast, *slow)
    assert with_intervals in ' '.join((ROOT / 'docs/performance.md').read_text().split())
    assert '{:.1f} times as fast as dense JAX at 1 Gbit/s, {:.0f} at'.format(*(f for f, _ in factors)) in text
    day = re.search(
        r'dense JAX took (\d+) and ([\d,]+) ms a step, ours at 64 took (\d+) and (\d+)',
        ' '.join(page.split()),
    )
    of_dense, of_ours = ([float(ms.replace(',', '')) for ms in day.group(*i)] for i in ((1, 2), (3, 4)))
    there = [f * a / b / (d / ms) for (f, ms), d, a, b in zip(factors, dense, of_dense, of_ours, strict=True)]
    assert '(another day: {:.1f}, {:.0f};'.format(*there) in text


def allows(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except ValueError:
        return 'no'
    return 'yes'


@pytest.mark.parametrize('name', ['def', 'powersgd', 'diloco', 'top_k'])
def test_what_readme_says_of_the_methods_is_what_they_allow(name):
    method = METHODS[name]
    said = {row['here']: row[method.title] for row in table(ROOT / 'README.md', '| here |')}
    config = get_config(f'method={name},num_workers=2')
    with config.unlocked():
        config.shards_per_worker = 2
    assert said['a worker shards its model (FSDP)'] == allows(check_config, config)
    compressor = method.compressor(1)
    arguments = (optax.identity(), optax.sgd(0.1), 'workers', compressor)
    assert said['messages in int8'] == allows(method.optimizer, *arguments, bits=8)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['powersgd', 'diloco', 'top_k'])
def test_what_readme_says_of_restarts(data_dir, tmp_path, name):
    """Bit for bit with as many workers; with half of them, the checkpoint is restored."""
    import training_fixtures as fixtures  # imports TensorFlow

    changes = {'method': name} | ({'every': 2, 'ratio': 1.0} if name == 'diloco' else {})
    config = fixtures.tiny_config(data_dir, **changes)
    fixtures.train(config, tmp_path / 'whole')
    with fixtures.killed(order, 'train_batch', when=13):
        fixtures.train(config, tmp_path / 'killed')
    fixtures.train(config, tmp_path / 'killed')
    run = experiment.build(config)
    whole, resumed = (fixtures.restored(tmp_path / folder, run) for folder in ('whole', 'killed'))
    fixtures.assert_same_bits(whole, resumed)
    half = fixtures.tiny_config(data_dir, num_workers=config.num_workers // 2, **changes)
    assert int(fixtures.restored(tmp_path / 'killed', experiment.build(half)).step) == int(whole.step)


def rows_of_runs(text):
    """The cells of every table row with a mean and a standard deviation."""
    lines = [line for line in text.splitlines() if line.startswith('|') and '±' in line]
    return [[cell.strip(' *') for cell in line.split('|')[1:-1]] for line in lines]


@pytest.mark.parametrize(('part', 'column'), [('1/16', 1), ('1/64', 3)])
def test_the_league_is_that_of_the_results(part, column):
    """Of each method the runs with or without momentum, whichever have the higher accuracy."""
    league = (ROOT / 'results/league/README.md').read_text().partition('## The perceptron')[2]
    section = league.partition(f'### About {part}')[2].partition('\n### ')[0]
    runs = {}
    for name, *_, accuracy, _, _, loss in (row[:8] for row in rows_of_runs(section)):
        runs.setdefault(name.removesuffix(' (no momentum)'), []).append((accuracy, loss))
    shown = rows_of_runs((ROOT / 'docs/results.md').read_text().partition('## The league')[2])
    shown = {row[0]: tuple(row[column : column + 2]) for row in shown if row[column]}
    assert len(shown) > 12
    for name, row in shown.items():
        assert row in runs[name] and row[0][:5] == max(accuracy for accuracy, _ in runs[name])[:5]


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
    assert len((ROOT / 'README.md').read_bytes()) <= 5000
