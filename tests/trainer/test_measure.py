"""What runs are compared by: which is better, how it is written, what a plot shows."""

import pytest

from def_jax.trainer.measure import Measure
from def_jax.trainer.tasks.base import Metric

ACCURACY = Measure('test', Metric('accuracy', greater_is_better=True, percent=True))
LOSS = Measure('validation', Metric('loss'))
R2 = Measure('test', Metric('r2', greater_is_better=True))


@pytest.mark.parametrize(
    ('measure', 'key', 'heading', 'axis', 'text', 'drawn', 'logarithmic'),
    [
        (ACCURACY, 'test_accuracy_y', 'test accuracy, %', 'test error, %', '75.00 ± 0.50 %', 25, True),
        (LOSS, 'validation_loss_y', 'validation loss', 'validation loss', '0.7500 ± 0.0050', 0.75, True),
        (R2, 'test_r2_y', 'test r2', 'test r2', '0.7500 ± 0.0050', 0.75, False),
    ],
)
def test_how_it_is_shown(measure, key, heading, axis, text, drawn, logarithmic):
    assert (measure.key('y'), measure.heading, measure.axis) == (key, heading, axis)
    assert measure.text(0.75, 0.005) == text
    assert measure.drawn(measure.shown(0.75)) == pytest.approx(drawn)
    assert measure.logarithmic == logarithmic
    assert Measure.of({'measure': measure.to_json()}) == measure  # as a result has it
    assert Measure.of({}) == ACCURACY  # results from before there was a choice


def test_which_is_better():
    assert [measure.best([0.1, 0.3, 0.2]) for measure in (ACCURACY, LOSS, R2)] == [0.3, 0.1, 0.3]
    assert LOSS.best([]) is None


def test_the_other_metrics_at_a_point():
    record = {'test_accuracy_x': 0.5, 'test_loss_x': 1.0, 'test_loss_y': 2.0, 'test_loss_x_running': 3.0}
    record |= {'train_loss_x': 4.0, 'validation_loss_x': 5.0, 'test_bits_per_byte_x': 6.0}
    assert ACCURACY.others(record, 'x') == {'test loss': 1.0, 'test bits per byte': 6.0}
