"""The paper's tables: their files, the runs that they ask for, and how their cells are filled."""

import itertools
import math

import pytest
from test_report import result

from configs.tables import tables as table_files
from paper import cells as cells_lib
from paper import needed_runs, sweep, tables


def small_table(**options):
    cells = [
        table_files.cell(1, 'SGD', '93.76', method='sgd', ratio=1),
        table_files.cell(64, 'DEF', '93.75', method='def', ratio=64),
        table_files.cell(64, 'DEF-A', method='def_a', ratio=64),
    ]
    return table_files.table('A table', table_files.digits_base(), cells, rows='ratio', **options)


def name(method, ratio, rate, seed):
    return f'method={method},ratio={ratio},learning_rate={rate},seed={seed}'


# --- Learning rates ---


def test_settings_are_tuned_together_on_validation_data_by_their_mean_over_seeds():
    grid = {'detach': (0.2, 0.5), 'learning_rate': (1.0, 0.5)}
    cells = [
        table_files.cell(64, 'DEF', tuned=grid, method='def', ratio=64),
        table_files.cell(1, 'SGD', method='sgd', ratio=1),
    ]
    on_validation = {'validation_examples': 200, 'evaluate_on': 'validation'}
    options = {'seeds': (0,), 'tuning_seeds': (100, 101), 'tuning': on_validation}
    spec = table_files.table(
        '', table_files.digits_base(), cells, rows='ratio', learning_rates=(0.1,), **options
    )
    sweep.check_spec(spec)
    cell = spec.cells[0]
    names = [needed_runs.run_name(run) for run in needed_runs.tuning_runs(spec, cell)]
    final = 'method=def,ratio=64,learning_rate={},detach={},seed={}'
    pattern = final + ',evaluate_on=validation,validation_examples=200'
    candidates = itertools.product((1.0, 0.5), (0.2, 0.5), (100, 101))
    assert names == [pattern.format(*candidate) for candidate in candidates]

    def validated(loss, status='finished'):
        measure = {'split': 'validation', 'metric': 'loss', 'greater_is_better': False, 'percent': False}
        metrics = {'validation_loss_y': loss, 'train_loss': 0.1}
        return result(0.5, status=status) | {'measure': measure, 'metrics': metrics}

    losses = (0.3, 0.7), (0.4, 0.4), (0.6, 0.6), (0.1, 0.8)
    done = dict(zip(names, map(validated, itertools.chain(*losses)), strict=True))
    last = done.pop(names[-1])
    assert needed_runs.cell_choice(spec, cell, done) is None
    assert '| 64 | DEF, detach=0.5 | 4 | 0.4000 | 0.1000 |' in tables.tuned(spec, done)
    done[names[-1]] = last
    assert needed_runs.cell_choice(spec, cell, done) == {'learning_rate': 1.0, 'detach': 0.5}
    (run,) = needed_runs.final_runs(spec, cell, done)
    assert needed_runs.run_name(run) == final.format(1.0, 0.5, 0)
    assert tables.tuned_on(spec, done) == 'validation loss'
    assert tables.tuned(spec, done).splitlines()[2:] == [
        '| 64 | DEF, detach=0.2 | 4 | 0.5000 | 0.6000 |  |',
        '| 64 | DEF, detach=0.5 | 4 | **0.4000** | 0.4500 |  |',
        '| 1 | SGD | 2 |  |  | – |',
    ]
    done[names[2]] = validated(0.4, status='diverged')  # one seed is enough to rank last
    assert needed_runs.cell_choice(spec, cell, done) == {'learning_rate': 0.5, 'detach': 0.5}
    assert '| 64 | DEF, detach=0.5 | 4 | diverges | **0.4500** |' in tables.tuned(spec, done)


def test_a_cell_keeps_the_rate_that_is_best_at_its_own_point():
    spec = small_table(learning_rates=(0.1, 0.01, 0.2))
    sgd, def_, def_a = spec.cells
    done = {
        name('sgd', 1, 0.1, 100): result(0.9, loss=0.2),
        name('sgd', 1, 0.01, 100): result(0.9, loss=0.1),  # among equals, the smaller training loss
        name('sgd', 1, 0.2, 100): result(0.99, status='diverged'),  # never
    }
    assert needed_runs.cell_choice(spec, sgd, done) == {'learning_rate': 0.01}
    assert needed_runs.cell_choice(spec, def_, done) is None
    assert needed_runs.final_runs(spec, def_, done) == []

    better_y, better_x = result(0.8), result(0.9)
    better_x['metrics']['test_accuracy_y'] = 0.1
    done |= {name('def', 64, 0.1, 100): better_y, name('def', 64, 0.01, 100): better_x}
    done[name('def', 64, 0.2, 100)] = result(0.3, status='diverged')
    assert needed_runs.cell_choice(spec, def_, done) == {'learning_rate': 0.1}
    assert needed_runs.cell_choice(spec, def_a, done) == {'learning_rate': 0.01}
    assert tables.tuned(spec, done).splitlines()[2:4] == [
        '| 1 | SGD | 3 | diverges | 90.00 | **90.00** |',
        '| 64 | DEF | 3 | diverges | **55.00** | 10.00 |',
    ]
    # Without a grid, the cell's own rate or the base's.
    spec, own = small_table(), table_files.cell(1, 'SGD', method='sgd', learning_rate=0.7)
    assert needed_runs.cell_choice(spec, spec.cells[0], {}) == {'learning_rate': spec.base.learning_rate}
    assert needed_runs.cell_choice(spec, own, {}) == {'learning_rate': 0.7}


def test_what_is_missing_comes_in_order_and_shrinks_to_nothing():
    spec, done, seen = small_table(learning_rates=(0.1, 0.01)), {}, []
    while missing := needed_runs.missing_runs(spec, done):
        first = next(iter(missing))
        seen.append(first)
        done[first] = result(0.9)
    assert len(seen) == len(set(seen)) == 4 + 2 * 3  # the grid, then three seeds of two trajectories
    assert all(n.endswith('seed=100') for n in seen[:4])
    assert [n.rsplit('=')[-1] for n in seen[4:]] == list('001122')  # one seed after another


# --- Cells ---


def filled(*results):
    spec = small_table()
    done = {name('def', 64, 0.1, seed): r for seed, r in enumerate(results)}
    return cells_lib.of_table(spec, done | {name('sgd', 1, 0.1, 0): result(0.99)})


@pytest.mark.parametrize(
    ('results', 'text'),
    [
        ([], '–'),
        ([result(0.90)], '90.00 (1 of 3)'),
        ([result(0.90), result(0.92), result(0.91)], '91.00 ± 1.00'),
        ([result(0.90), result(0.92, status='diverged')], 'diverges (1 of 2)'),
        ([result(0.90, loss=0.96 * math.log(10))], 'diverges'),
        ([result(0.90, loss=0.94 * math.log(10))], '90.00 (1 of 3)'),
    ],
)
def test_text_of_a_cell(results, text):
    _, def_, def_a = filled(*results)
    assert def_a.text == text
    assert (def_.text == text) == (not results or def_.diverged > 0)  # else another point of the same runs


# --- Bad tables ---


def one_cell(**tuned):
    return {'cells': (table_files.cell('', '', tuned=tuned, method='def'),)}


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (
            {'tuning_seeds': (1, 9)},
            r'tuning_seeds=\(1, 9\) and config.seeds=\(0, 1, 2\) must have no seed in',
        ),
        ({'tuning_seeds': ()}, 'config.seeds, config.cells and config.tuning_seeds must not be empty'),
        (
            one_cell(detatch=(0.1,), learning_rate=(1.0,)),
            "'detatch', in a cell, is not a known key. Did you mean 'detach'?",
        ),
        (one_cell(detach=(0.1,)), "tuned settings need learning rates .* 'learning_rate' in tuned"),
        ({'tuning': {'validation_example': 3}}, "'validation_example', in tuning, is not a known key"),
        ({'learning_rates': (0.1, -1.0)}, 'config.learning_rate=-1.0 must be a number > 0'),
    ],
)
def test_impossible_tables(changes, message):
    spec = small_table()
    with spec.unlocked():
        spec.update(changes)
    with pytest.raises(ValueError, match=message):
        sweep.check_spec(spec)
