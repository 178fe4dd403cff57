"""How rates are chosen, how certain differences are, and what the page says of it."""

import dataclasses
import functools
import json
import re

import numpy as np
import pytest
from scipy import stats

from experiments import __main__, few_bits, methods, pages, runner, spec, statistics, tuning
from experiments.spec import Record, Records, Spec
from experiments.statistics import Side
from experiments.tuning import Contender, Setting

ORIGIN = {'commit': 'abc', 'machine': 'one core', 'versions': {'python': '3.11'}}
CERTAIN = {0: np.array([1.0, 1.1]), 1: np.array([2.0, 2.1])}


def sides(rng, *means, seeds=20):
    return [Side(CERTAIN, {0: rng.normal(mean, 1.0, seeds)}) for mean in means]


@pytest.mark.parametrize(('seeds', 'paired'), [(20, True), (5, True), (3, False)])
def test_where_the_choice_is_certain_the_interval_is_students(seeds, paired):
    ours, theirs = sides(np.random.default_rng(0), 1.0, 0.0, seeds=seeds)
    a, b = ours.fresh[0], theirs.fresh[0]
    expected = stats.ttest_rel(a, b) if paired else stats.ttest_ind(a, b, equal_var=False)
    interval = expected.confidence_interval()
    for found in (statistics.at_chosen(ours, theirs), statistics.tuned_again(ours, theirs)):
        assert found[:3] == pytest.approx((a.mean() - b.mean(), interval.low, interval.high), abs=1e-6)
        assert found.p_value == pytest.approx(expected.pvalue)


def test_an_open_choice_counts_for_who_tunes_again_and_not_at_the_chosen_rates():
    """Two rates that tuning takes equally often, of which one is two points better with fresh seeds."""
    rng = np.random.default_rng(1)
    losses = rng.normal(size=(2, 20))
    tried = {0: losses[0] - losses[0].mean(), 1: losses[1] - losses[1].mean(), 2: np.full(20, 9.0)}
    values = rng.normal(0.0, 0.1, 20)
    open_, sgd = Side(tried, {0: values, 1: values + 2}), Side(CERTAIN, {0: rng.normal(0.0, 0.1, 20)})
    shares = statistics.shares(tried)
    assert shares[2] == 0 and 0.3 < shares[0] < 0.7 and set(statistics.likely(tried)) == {0, 1}
    found = statistics.tuned_again(open_, sgd)
    assert found.mean == pytest.approx(values.mean() + 2 * open_.weights[1] - sgd.mean)
    assert found.low < 0.1 and found.high > 1.9 and found.within(0.5) == 'yes' and found.p_value > 0.1
    here, student = statistics.at_chosen(open_, sgd), stats.ttest_rel(open_.fresh[open_.chosen], sgd.fresh[0])
    interval = student.confidence_interval()
    assert here[1:] == pytest.approx((interval.low, interval.high, student.pvalue), abs=1e-6)
    assert here.mean == pytest.approx(values.mean() + 2 * open_.chosen - sgd.mean)


def test_rates_that_did_equally_well_are_drawn_by_lot_by_each_side_for_itself():
    tied = {0: np.array([0.1 + 0.2, 1.0]), 1: np.array([0.3, 1.0]), 2: np.full(2, np.inf)}
    assert statistics.shares(tied) == {0: pytest.approx(0.5, abs=0.05), 1: pytest.approx(0.5, abs=0.05), 2: 0}
    first, second = (Side(tied, {k: np.full(5, k * step) for k in (0, 1)}) for step in (1.0, 10.0))
    pairs = [(mean, weight) for weight, mean, *_ in statistics._parts(first, second)]
    assert dict(pairs) == {mean: pytest.approx(0.25, abs=0.05) for mean in (0.0, 1.0, -10.0, -9.0)}


def test_the_same_rate_of_both_sides_differs_in_nothing():
    (side,) = sides(np.random.default_rng(2), 0.0)
    assert statistics.tuned_again(side, side).p_value == pytest.approx(1.0)
    assert statistics.tuned_again(side, side).text() == '+0.00 [-0.00, +0.00]'


# --- Rates ---


def test_the_grid_grows_until_the_best_has_neighbours():
    tried = tuning.tune(lambda ks: [[abs(k - 4.0), np.nan if k < 0 else 1.0] for k in ks], 0)
    assert list(tried) == [-1, 0, 1, 2, 3, 4, 5] and np.isinf(tried[-1]).any()
    diverging = tuning.tune(lambda ks: [[abs(k + 5.0) if k < -3 else np.inf] for k in ks], 0)
    assert list(diverging) == [*range(-6, 2)]
    with pytest.raises(LookupError, match='no rate is best: numbers -1 to 13 were tried; an edge is likely'):
        tuning.tune(lambda ks: [[-float(k)] for k in ks], 0)


def test_the_grid_grows_until_what_other_seeds_would_choose_has_neighbours():
    """The mean is least at 1; the second seed alone, drawn twice in a quarter of the cases, chooses 2."""
    assert list(tuning.tune(lambda ks: [[k**2, (k - 2.0) ** 2] for k in ks], 0)) == [-1, 0, 1, 2, 3]


SETTING = Setting(
    name='toy',
    problem='digits',
    where={},
    contenders=[Contender('SGD', 'sgd', {}, 0.1), Contender('DEF', 'def', {'ratio': 8}, 0.1)],
    tuning_seeds=range(100, 110),
    seeds=range(6),
    margin=0.5,
)


def toy(specs, origin=ORIGIN):
    """Records: tuning takes one of two rates of DEF as its seeds say, and always the same of SGD."""
    for each in specs:
        distance = np.log(each.rate / 0.1) / np.log(SETTING.factor)
        noise = (-1) ** each.seed * (1 if each.rate == 0.1 else -1)
        blur, best = (0.2, 0.5) if each.method == 'def' else (0.01, 0.0)
        loss = 1 + (distance - best) ** 2 + blur * noise
        point = 'y' if each.method == 'def' else 'x'
        found = {f'loss_{point}': loss, f'accuracy_{point}': 0.9 + 0.001 * noise}
        metrics = {f'{each.evaluate_on}_{name}': value for name, value in found.items()}
        yield Record(each, metrics, (1.0,), 0.1, 'lanes', origin)


def test_a_run_that_diverged_has_no_result_and_no_metric_is_made_up():
    def get(specs, **metrics):
        return [dataclasses.replace(each, metrics=metrics) for each in toy(specs)]

    def one_dead(specs):  # in lanes, it still has an accuracy
        dead = [{'test_loss_x': None} if each.seed == 3 else {} for each in specs]
        return [dataclasses.replace(r, metrics=r.metrics | d) for r, d in zip(toy(specs), dead, strict=True)]

    first = SETTING, SETTING.contenders[0]
    assert tuning.cell(*first, one_dead).headline == 'diverges'
    with pytest.raises(LookupError, match='no rate is best'):
        tuning.cell(*first, get)
    with pytest.raises(ValueError, match='has no validation_loss_x, but a'):
        tuning.cell(*first, functools.partial(get, a=1.0))


def test_every_likely_rate_gets_fresh_seeds_that_choose_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(runner.EXECUTORS, 'lanes', toy)
    records = Records(tmp_path / 'runs.jsonl')
    get = runner.Runner(records, ORIGIN)
    sgd, found = (tuning.cell(SETTING, contender, get) for contender in SETTING.contenders)
    assert list(sgd.side.fresh) == [0] and set(found.side.fresh) == {0, 1}
    for record in records:
        assert (record.spec.evaluate_on == 'validation') == (record.spec.seed >= 100)
    with pytest.raises(ValueError, match=r'share \[3\]'):
        Setting('', 'digits', {}, [], tuning_seeds=[3], seeds=[3], margin=0)


def test_runs_of_another_arithmetic_are_not_those_of_the_library_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setitem(runner.EXECUTORS, 'lanes', toy)
    sgd, old = SETTING.contenders[0], Contender('DEF-Q', 'def_q', {'ratio': 64, 'bits': 2}, 0.1)
    new, records = old._replace(revision=methods.REVISION), Records(tmp_path / 'runs.jsonl')
    get = runner.Runner(records, ORIGIN)
    for contender, words in (
        (old, "of revision 'own chunk exact'"),
        (sgd._replace(revision='x'), "of revision ''"),
    ):
        with pytest.raises(ValueError, match=words):
            tuning.cell(SETTING, contender, get)
    setting = dataclasses.replace(SETTING, contenders=[sgd, new])
    runner.train([setting], get)
    pages.write_experiment([setting], '{table}{origins}', tmp_path)
    assert 'before' not in (tmp_path / 'README.md').read_text()
    for record in [each for each in records if each.spec.revision]:
        records.add(dataclasses.replace(record, spec=dataclasses.replace(record.spec, revision='')))
    pages.write_experiment(
        [dataclasses.replace(SETTING, contenders=[sgd, old])], '{table}{origins}', tmp_path
    )
    assert "ran before a worker's own chunk stayed exact" in (tmp_path / 'README.md').read_text()


# --- Records ---


def test_a_stopped_experiment_goes_on_where_it_was(tmp_path, monkeypatch):
    trained = []

    def stopping(specs, origin):
        for record in toy(specs, origin):
            if len(trained) == 25:
                raise KeyboardInterrupt
            trained.append(record.spec)
            yield record

    monkeypatch.setitem(runner.EXECUTORS, 'lanes', stopping)
    path = tmp_path / 'few' / 'runs.jsonl'
    with pytest.raises(KeyboardInterrupt):
        runner.train([SETTING], runner.Runner(Records(path), ORIGIN))
    assert len(path.read_text().splitlines()) == 25
    assert not runner.finished([SETTING], Records(path))
    monkeypatch.setitem(runner.EXECUTORS, 'lanes', toy)
    runner.train([SETTING], runner.Runner(Records(path), ORIGIN))
    lines = path.read_text().splitlines()
    assert len({Record.of_json(json.loads(line)).spec.key for line in lines}) == len(lines)
    (cells,) = runner.finished([SETTING], Records(path))
    assert [cell.contender.title for cell in cells] == ['SGD', 'DEF']
    with pytest.raises(ValueError, match='has a record of'):
        Records(path).add(next(iter(Records(path))))
    twice = tmp_path / 'twice.jsonl'
    twice.write_text('\n'.join([lines[0], lines[1], lines[0]]))
    with pytest.raises(ValueError, match=r'twice\.jsonl:3 repeats the run of an earlier line'):
        Records(twice)
    monkeypatch.setitem(runner.EXECUTORS, 'lanes', stopping)  # another experiment trains none of these again
    get = runner.Runner(Records(tmp_path / 'runs.jsonl'), ORIGIN, others=[Records(path)])
    assert len(get([record.spec for record in Records(path)])) == len(Records(tmp_path / 'runs.jsonl')) > 25


def test_a_record_survives_its_file_and_is_found_whatever_the_order_of_keys(tmp_path):
    first = Spec('text', 'sgd', 0.1, 0, {'size': '33k', 'steps': 3}, {'optimizer_options': {'b1': 0.9}})
    Records(tmp_path / 'a').add(Record(first, {'test_loss_x': None}, (1.0, None), 2.5, 'lanes', ORIGIN))
    again = Spec('text', 'sgd', 0.1, 0, {'steps': 3, 'size': '33k'}, {'optimizer_options': {'b1': 0.9}})
    found = Records(tmp_path / 'a').get(again)
    assert found.metrics == {'test_loss_x': None} and found.course == (1.0, None)
    assert found.origin == ORIGIN and found.spec.group == first.group


def test_a_record_names_commit_machine_and_versions_and_no_dirty_checkout(monkeypatch):
    answers = {'rev-parse': 'abc', 'status': ''}
    monkeypatch.setattr(spec, '_git', lambda command, *_: answers[command])
    found = spec.origin()
    assert found['commit'] == 'abc' and 'cores' in found['machine']
    assert {'python', 'jax', 'optax', 'numpy'} <= found['versions'].keys()
    answers['status'] = ' M def_jax/presets.py'
    with pytest.raises(spec.DirtyError, match=r'differs from commit abc \(def_jax/presets.py\)'):
        spec.origin()
    assert spec.origin(allow_dirty=True)['commit'] == 'abc-dirty'


def test_few_bits_writes_its_page_from_records(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(few_bits, 'SETTINGS', [SETTING])
    toy_page = re.sub(r'few_bits;[^>]*; (\w+ ?\w*) -->', r'few_bits; toy; DEF; \1 -->', few_bits.PAGE)
    monkeypatch.setattr(few_bits, 'PAGE', toy_page)
    assert __main__.main(['page', 'few_bits', '--results', str(tmp_path)]) == 2
    assert 'no setting has two finished methods' in capsys.readouterr().err
    monkeypatch.setitem(runner.EXECUTORS, 'lanes', toy)
    arguments = ['run', 'few_bits', '--results', str(tmp_path), '--allow_dirty', '--only']
    assert __main__.main([*arguments, 'nothing']) == 2
    assert __main__.main([*arguments, 'toy']) == 0
    assert __main__.main(['page', 'few_bits', '--results', str(tmp_path)]) == 0
    page, picture = (tmp_path / 'few_bits' / name for name in ('README.md', 'differences.png'))
    text, drawn = page.read_text(), picture.read_bytes()
    here, again = re.findall(r'\| ([-+.\d]+ \[.*?\])', text)
    assert set(re.findall(r'difference -->(.+?)<!--', text)) == {here} != {again}
    assert set(re.findall(r'tuned again -->(.+?)<!--', text)) == {again}
    assert '| toy | DEF |' in text and ' records: ' in text
    assert __main__.main(['page', 'few_bits', '--results', str(tmp_path)]) == 0
    assert (page.read_text(), picture.read_bytes()) == (text, drawn)
    missing = dataclasses.replace(
        SETTING, contenders=[*SETTING.contenders, Contender('EF', 'ef', {'ratio': 8})]
    )
    pages.write_experiment([missing], toy_page, tmp_path / 'few_bits')
    assert 'Without a row, as runs are missing: toy: EF.' in page.read_text()
