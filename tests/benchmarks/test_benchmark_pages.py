"""Every page of a benchmark follows from its committed records, and a page keeps what people wrote."""

import importlib
import shutil
from pathlib import Path

import pytest

from benchmarks import pages, records

RESULTS = Path(__file__).parents[2] / 'results'


@pytest.mark.parametrize('name', pages.SUBJECTS)
def test_a_committed_page_follows_from_its_records(name, tmp_path):
    for path in (RESULTS / pages.SUBJECTS[name]).iterdir():
        if path.suffix in ('.md', '.json', '.jsonl'):
            shutil.copy(path, tmp_path)
    importlib.import_module(f'benchmarks.{name}.page').write(tmp_path)
    for page in tmp_path.glob('*.md'):
        assert page.read_text() == (RESULTS / pages.SUBJECTS[name] / page.name).read_text()
        assert len(page.read_text().split()) <= 1500
    pictures = [path for path in tmp_path.glob('*.png') if path.stat().st_size > 1000]
    assert pictures or name in ('cluster', 'accelerators')


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


def test_a_record_is_appended_once_and_replaced_on_demand(tmp_path):
    runs = records.Records(tmp_path / 'new' / 'runs.jsonl', lambda record: record['seed'])
    for record in ({'seed': 0, 'loss': 1.0}, {'seed': 1, 'loss': 2.0}, {'seed': 0, 'loss': 3.0}):
        assert runs.add(record) == record
    assert records.read(tmp_path / 'new' / 'runs.jsonl') == [
        {'seed': 0, 'loss': 3.0},
        {'seed': 1, 'loss': 2.0},
    ]
    again = records.Records(tmp_path / 'new' / 'runs.jsonl', lambda record: record['seed'])
    assert again.get({'seed': 1}) == {'seed': 1, 'loss': 2.0} and again.get({'seed': 2}) is None
