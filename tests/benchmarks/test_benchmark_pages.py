"""Every page of a benchmark follows from its committed records, and a page keeps what people wrote."""

import importlib
import shutil
from pathlib import Path

import pytest

from benchmarks import pages, records

RESULTS = Path(__file__).parents[2] / 'results' / 'benchmarks'


@pytest.mark.parametrize('name', pages.SUBJECTS)
def test_a_committed_page_follows_from_its_records(name, tmp_path):
    for path in RESULTS.iterdir():
        if path.suffix in ('.md', '.json', '.jsonl'):
            shutil.copy(path, tmp_path)
    importlib.import_module(f'benchmarks.{name}.page').write(tmp_path)
    for page in tmp_path.glob('*.md'):
        assert page.read_text() == (RESULTS / page.name).read_text()
    pictures = [path for path in tmp_path.glob('*.png') if path.stat().st_size > 1000]
    assert pictures or name in ('cluster', 'nodes', 'accelerators')


def test_a_page_keeps_what_stands_between_its_sections(tmp_path):
    page = tmp_path / 'page.md'
    pages.write(page, {'a': 'one', 'b': 'two'})
    page.write_text('# Title\n\n' + page.read_text())
    pages.write(page, {'b': 'three', 'c': 'four'})
    written = page.read_text()
    assert written.startswith('# Title') and 'one' in written and 'two' not in written
    assert written.endswith('four\n\n<!-- end of c -->\n')
    page.write_text(written.replace('<!-- end of c -->', ''))
    with pytest.raises(ValueError, match=r'the page needs the lines .*<!-- end of c -->'):
        pages.write(page, {'c': ''})


def test_only_the_runs_without_a_record_are_missing(tmp_path):
    path, wanted = tmp_path / 'new' / 'runs.jsonl', [{'seed': seed, 'rate': 0.1} for seed in range(3)]
    assert records.missing(path, wanted) == wanted and records.read(path) == []
    for seed in (2, 0):
        records.add(path, {'settings': {'rate': 0.1, 'seed': seed}, 'loss': float(seed)})
    assert records.missing(path, wanted) == [wanted[1]]
    assert [record['loss'] for record in records.read(path)] == [2.0, 0.0]
