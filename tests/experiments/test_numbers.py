"""Numbers on pages are those of the records, and every page of results follows from its own."""

import functools
import importlib
import re
import shutil
from pathlib import Path

import matplotlib.figure
import pytest
import training_fixtures as fixtures
from figures import has

from def_jax.tools.planner import advice
from experiments import __main__, numbers, pages, runner, wire
from experiments.spec import Records, Spec

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / 'results'
WITH_RECORDS = sorted(path.parent.name for path in RESULTS.glob('*/runs.jsonl'))
MARK = '<!-- number: figure3; digits, ratio 64, at the end; DEF-A; {} -->{}<!-- /number -->'
FILLED = MARK.format('difference', '-0.04 [-0.71, +0.62]')


@functools.cache
def rows_of(name):
    settings = importlib.import_module(f'experiments.{name}').SETTINGS
    return pages.rows(runner.finished(settings, Records(RESULTS / name / 'runs.jsonl')))


@pytest.mark.parametrize('name', WITH_RECORDS)
def test_a_page_of_results_follows_from_its_records(name, tmp_path, monkeypatch):
    if name not in ('length', 'own_chunk'):  # which have all kinds of pictures; painting is half the time
        monkeypatch.setattr(matplotlib.figure.Figure, 'savefig', fixtures.unpainted)
    shutil.copy(RESULTS / name / 'runs.jsonl', tmp_path)
    experiment = importlib.import_module(f'experiments.{name}')
    drawings = (getattr(experiment, name, None) for name in ('CURVES', 'ALONG'))
    pages.write_experiment(experiment.SETTINGS, experiment.PAGE, tmp_path, *drawings)
    page = (tmp_path / 'README.md').read_text()
    assert (RESULTS / name / 'README.md').read_text() == page
    rows = re.search(r'^\| problem \| method \| bytes \|.*\n\| --- .*\n((?:\|.*\n)+)', page, re.MULTILINE)[1]
    assert all(row.split(' | ')[2].startswith('1') for row in rows.splitlines())
    drawn = {path.name for path in tmp_path.glob('*.png')}
    assert drawn == {path.name for path in (RESULTS / name).glob('*.png')}


@pytest.mark.parametrize(
    ('workers', 'compression', 'scattered', 'gathered'),
    [(8, 256, 208, 34), (64, 256, 512, 16), (8, 1024, 112, 22)],
)
def test_the_bytes_on_pages_are_those_of_the_programs(workers, compression, scattered, gathered):
    """A small perceptron's: with many workers, the units of its tensors outweigh its numbers."""
    where = {'width': 64} | ({'workers': workers} if (workers, compression) != (8, 256) else {})
    spec = Spec('digits', 'def_q', 0.1, 0, where, {'ratio': compression, 'bits': 2})
    dense = 4 * (64 * 64 + 64 + 64 * 64 + 64 + 64 * 10 + 10)
    expected = dense / round(scattered / 2 + gathered * workers / 2)
    assert wire.measured(spec) == pytest.approx(expected) and wire.known(spec) == pytest.approx(
        expected, rel=1e-3
    )


def test_no_number_of_the_project_is_stale(capsys):
    assert __main__.main(['numbers', '--check', '--results', str(RESULTS)]) == 0, capsys.readouterr().out


# Of the pages' sentence: in each experiment, what is compared with the first method, and on which problems.
_WIDTHS = ('width 16, 8 workers', 'width 64, 2 workers', 'width 64, 64 workers', 'width 384, 8 workers')
THIRTEEN = {
    'few_bits': ('1/64, 2 bits', 'digits, width 64, again', 'digits, width 192, again', 'CIFAR-10, reduced'),
    'scale': ('1/64, 2 bits', *_WIDTHS),
    'cifar10': ('DEF-Q, 1/64, 2 bits', '30 epochs, DEF-Q'),
    'table1': ('DEF-Q, 1/64, 2 bits', 'digits, DEF-Q'),
    'own_chunk': ('AdamW, b1 = 0.8, b2 = 0.95', '33 k, 1/64'),
    'transformers': (
        'AdamW, b1 = 0.8, b2 = 0.99',
        'transformer, 115 k',
        'transformer, 358 k',
        'transformer, 1 M',
    ),
}


def test_pages_count_apart_where_def_q_is_within_the_margin_open_and_behind():
    page = RESULTS.parent / 'docs' / 'results.md'
    within, behind, reach, sent = [[], []], [], {'points': [], 'nats': []}, []
    for name, (method, *problems) in THIRTEEN.items():
        for problem in problems:
            here = [r for r in rows_of(name) if r.cell.setting.name == problem]
            (row,) = [r for r in here if r.cell.contender.title == method]
            sent += [
                min(wire.known(r.cell.spec) for r in here if r.cell.contender.options.get('ratio') == 64)
            ]
            percent, margin = row.cell.setting.percent, row.cell.setting.margin
            # Of DEF-Q minus dense training, which is the first method of some settings and not of others.
            sides = [[-x for x in each[2:0:-1]] if 'AdamW' in method else each[1:3] for each in row[1:3]]
            for verdicts, (low, _) in zip(within, sides, strict=True):
                verdicts.append('yes' if low > -margin else 'open')
            if (ends := sides[0])[1] < 0:
                behind.append(row.difference.text(2 if percent else 3))
            else:
                reach['points' if percent else 'nats'].append(-ends[0])
    assert has(page, f'1/{min(sent):.0f}', f'1/{max(sent):.0f}')
    words = ['one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine']
    here, again = ([words[each.count(kind) - 1] for kind in ('yes', 'open')] for each in within)
    assert has(page, f'{here[0]} of thirteen')
    assert has(page, f'other {here[1]}', again[1])
    assert has(page, f'{max(reach["points"]):.2f}', f'{max(reach["nats"]):.3f}')
    assert has(page, f'behind on {words[len(behind) - 1]}') and all(has(page, each) for each in behind)


def test_what_the_pages_say_of_10_m_parameters_by_hand_is_on_record():
    found = {}
    for each in Records(RESULTS / 'transformers/runs.jsonl'):
        where, options = each.spec.where, each.spec.options
        if where['size'] == '11m' and (where['steps'] == 200) == (each.spec.evaluate_on == 'validation'):
            kind = (options['ratio'], options['bits']) if each.spec.method == 'def_q' else 'AdamW'
            found[where['steps'], kind, each.spec.rate] = each.metrics[f'{each.spec.evaluate_on}_loss_x']
    low, high = 0.00078125, 0.0015625
    page = RESULTS / 'transformers/README.md'
    single = [f'{found[200, kind, low]:.3f}' for kind in ((1, 32), (16, 2), (4, 32), (64, 2), 'AdamW')]
    rates = {16: low, 64: high}
    behind = {ratio: found[2000, (ratio, 2), rates[ratio]] - found[2000, 'AdamW', high] for ratio in rates}
    assert behind == pytest.approx(advice.BEHIND, abs=5e-4)
    sixteen = f'{behind[16]:.3f}'
    assert has(page, *single)
    twice = [found[200, kind, high] for kind in ((64, 2), (64, 4), 'AdamW')]
    assert has(page, *(f'{each:.3f}' for each in twice))
    assert has(page, f'{sixteen} behind AdamW')
    assert has(RESULTS.parent / 'docs/results.md', sixteen, '1/16')
    assert has(RESULTS.parent / 'docs/decide.md', sixteen, 16)


def test_no_mark_begins_a_line():
    """Markdown takes a comment that begins a line for a block of HTML, and shows the rest of it raw."""
    root = RESULTS.parent
    for page in [root / 'README.md', *(root / 'docs').glob('**/*.md'), *RESULTS.glob('**/*.md')]:
        assert not re.search(r'^ *<!-- number:', page.read_text(), re.MULTILINE), page


def test_a_stale_number_is_found_and_filled(tmp_path, capsys):
    page = tmp_path / 'page.md'
    page.write_text(f'DEF-A is {MARK.format("difference", "+5.00")} points ahead.')
    arguments = ['numbers', '--results', str(RESULTS), str(page)]
    assert __main__.main([*arguments, '--check']) == 1 and 'stale' in capsys.readouterr().out
    assert '+5.00' in page.read_text()
    assert __main__.main(arguments) == 0 and page.read_text() == f'DEF-A is {FILLED} points ahead.'
    assert __main__.main([*arguments, '--check']) == 0
    page.write_text(MARK.replace('digits', 'VGG-16').format('difference', ''))
    assert __main__.main([*arguments, '--check']) == 1
    assert __main__.main(arguments) == 0 and '(not run)' in page.read_text()
    assert __main__.main([*arguments, '--check']) == 1 and 'without a number' in capsys.readouterr().out


def test_what_the_planner_prints_is_filled_in(tmp_path, capsys):
    page = tmp_path / 'page.md'
    command = (
        '```sh\npython -m def_jax.plan --params=7B --step-time=3 \\\n    --workers=16 --bandwidth={}\n```\n\n'
    )
    page.write_text(
        command.format('1gbit') + '<!-- printed -->\nDense is best.\n<!-- /printed -->\nAnd so on.'
    )
    arguments = ['numbers', '--results', str(RESULTS), str(page)]
    assert __main__.main([*arguments, '--check']) == 1 and 'stale' in capsys.readouterr().out
    assert __main__.main(arguments) == 0 and '\n\nStart with ' in page.read_text()
    assert __main__.main([*arguments, '--check']) == 0 and page.read_text().endswith(
        '/printed -->\nAnd so on.'
    )
    page.write_text(page.read_text().replace('1gbit', '2gbit'))
    assert __main__.main([*arguments, '--check']) == 1


def test_a_cell_of_a_benchmark_is_filled_in(tmp_path):
    table = '<!-- b -->\n\n| x | ms (quartiles) |\n| --- | --- |\n| c, d | 12 (9 to 14) |\n<!-- end of b -->'
    (tmp_path / 'benchmarks').mkdir()
    (tmp_path / 'benchmarks' / 'a.md').write_text(table)
    mark = '<!-- number: benchmarks/a; b; {}; ms -->{}<!-- /number -->'
    found = numbers.filled(mark.format('c, d', '11'), None, tmp_path)
    assert found == mark.format('c, d', '12')
    with pytest.raises(ValueError, match=r"benchmarks/a\.md has no cell 'c', 'ms' in"):
        numbers.filled(mark.format('c', '11'), None, tmp_path)


@pytest.mark.parametrize(
    ('address', 'words'),
    [
        ('a; b; c', 'must name an experiment, a setting, a method and one of result, bytes, difference'),
        ('table4; digits; λ = 1; difference', 'names no setting of table4: digits, DEF, ratio 64'),
        ('table4; digits, DEF, ratio 64; SGD; result', 'names no method of digits, DEF, ratio 64: λ = 0'),
    ],
)
def test_a_mark_of_what_is_not_there_is_refused(address, words):
    table4 = importlib.import_module('experiments.table4')
    with pytest.raises(ValueError, match=re.escape(words)):
        numbers.filled(
            f'<!-- number: {address} -->1<!-- /number -->', lambda name: (table4.SETTINGS, []), RESULTS
        )


def test_a_number_that_was_not_run_says_so():
    table4 = importlib.import_module('experiments.table4')
    mark = '<!-- number: table4; VGG-16, DEF; λ = 0.1; result -->93<!-- /number -->'
    text = numbers.filled(mark, lambda name: (table4.SETTINGS, []), RESULTS)
    assert text == mark.replace('93', '(not run)')
