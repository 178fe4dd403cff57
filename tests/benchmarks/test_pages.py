"""The committed pages of benchmarks follow from the committed records of their runs."""

import json
import shutil
from pathlib import Path

from benchmarks.accelerators import page as accelerators
from benchmarks.adamw import page as adamw
from benchmarks.adamw.settings import Setting
from benchmarks.cluster import page as cluster
from benchmarks.time_to_accuracy import page as time_to_accuracy

RESULTS = Path(__file__).parents[2] / 'results' / 'benchmarks'


def text(name):
    return (RESULTS / name).read_text(encoding='utf-8')


def lines(name):
    return [json.loads(line) for line in text(name).splitlines()]


def test_the_cluster():
    record = json.loads(text('cluster.json'))
    sections = cluster.sections(record, record['models'])
    assert len(sections) > 15 and all(section in text('cluster.md') for section in sections)


def test_accuracy_against_seconds(tmp_path):
    runs = [run for run in lines('time_to_accuracy.jsonl') if not run['settings']['validation']]
    runs = [run for run in runs if run['settings']['num_steps'] == 1560]
    sections = time_to_accuracy.sections(runs, {}, 'time_to_accuracy.png')
    assert len(sections) > 4 and all(section in text('time_to_accuracy.md') for section in sections)
    time_to_accuracy.draw(runs, tmp_path / 'p.png')
    assert (tmp_path / 'p.png').stat().st_size > 1000


def test_programs_for_accelerators():
    assert accelerators.page(json.loads(text('accelerators.json'))) == text('accelerators.md')


def test_adamw(tmp_path):
    runs = lines('adamw.jsonl')
    settings = [Setting.of(line) for line in runs]
    assert len(set(settings)) == len(settings)  # the runs name them
    shutil.copy(RESULTS / 'adamw.md', tmp_path)
    adamw.write(runs, tmp_path / 'adamw.md')
    assert (tmp_path / 'adamw.md').read_text() == text('adamw.md')
    assert (tmp_path / 'adamw.png').stat().st_size > 1000
