"""What runs are compared by: where it is stored, and how it is written."""

from def_jax.trainer.tasks.base import Measure, Metric

ACCURACY = Measure('test', Metric('accuracy', greater_is_better=True, percent=True))
LOSS = Measure('validation', Metric('bits_per_byte'))


def test_how_a_measure_is_stored_and_shown():
    assert (ACCURACY.key('y'), ACCURACY.title) == ('test_accuracy_y', 'test accuracy')
    assert (ACCURACY.text(0.75, 0.005), LOSS.text(0.75)) == ('75.00 ± 0.50 %', '0.7500')
    assert (LOSS.key('x'), LOSS.title) == ('validation_bits_per_byte_x', 'validation bits per byte')
    record = {'test_accuracy_x': 0.5, 'test_loss_x': 1.0, 'test_loss_y': 2.0, 'test_loss_x_running': 3.0}
    record |= {'train_loss_x': 4.0, 'validation_loss_x': 5.0, 'test_bits_per_byte_x': 6.0}
    assert ACCURACY.others(record, 'x') == {'test loss': 1.0, 'test bits per byte': 6.0}
