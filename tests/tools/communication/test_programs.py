"""What the compiled programs of a run send, and what is counted without compiling."""

import pytest
import training_fixtures as fixtures

from def_jax.trainer import communication, experiment


@pytest.mark.parametrize(
    ('changes', 'message', 'element_bytes', 'dense', 'mean_residual'),
    [
        # EF21 has a whole gradient in the branch of the first step.
        ({'method': 'ef21'}, fixtures.MESSAGE_SIZE, 4, [fixtures.NUM_PARAMS], 0),
        # In int8, two digits for each tensor and for the energy, and a flag.
        (
            {'bits': 8, 'detach': 'auto', 'skip_nonfinite': True, 'workers_per_device': 2},
            fixtures.MESSAGE_SIZE + 2 * (5 + 1) + 1,
            1,
            [],
            fixtures.NUM_PARAMS,
        ),
    ],
    ids=['ef21', 'def'],
)
def test_a_step_all_reduces_the_message_and_nothing_else(
    data_dir, changes, message, element_bytes, dense, mean_residual
):
    run = experiment.build(fixtures.tiny_config(data_dir, **changes))
    train_step, outputs, test_sums = communication.programs(run)
    assert {collective.operation for collective in train_step.collectives} == {'all-reduce'}
    assert sorted(collective.elements for collective in train_step.collectives) == [message, *dense]
    assert train_step.bytes == element_bytes * message + 4 * sum(dense)
    assert train_step.executions == fixtures.NUM_STEPS
    assert outputs.elements == mean_residual + 2 * 8  # and the mean and variance of eight channels
    assert test_sums.elements == 3 and outputs.executions == 4
    sent = run.communication
    assert (sent.message_size, sent.bytes_per_step) == (message, element_bytes * message)
    assert sent.dense_steps == len(dense)


@pytest.mark.parametrize(
    ('options', 'steps', 'elements'),
    [
        ({}, 7, 7 * 10),
        ({'element_bytes': 1}, 8, 2 * 10),  # four elements of int8 take the place of one
        ({'dense_steps': 1}, 0, 0),  # EF21 starts with a whole gradient
        ({'dense_steps': 5}, 7, 5 * 100 + 2 * 10),  # 1-bit Adam starts dense
        ({'average_every': 3}, 7, 7 * 10 + 2 * 100),  # SAEF averages the residuals
        ({'every': 3, 'always': 4}, 7, 7 * 4 + 2 * 10),  # CSER
    ],
)
def test_messages_are_counted(options, steps, elements):
    sent = experiment.Communication(num_params=100, message_size=10, **options)
    assert sent.megabytes_sent(steps) == pytest.approx(4 * elements / 1e6)


@pytest.mark.parametrize(
    ('changes', 'dense_steps', 'average_every'),
    [
        ({'method': 'onebit_adam', 'freeze_after': 7}, 7, 0),
        ({'method': 'saef', 'average_every': 5}, 0, 5),
        ({'method': 'def', 'average_every': 5}, 0, 0),  # which has no use for it
    ],
    ids=str,
)
def test_methods_with_dense_messages(data_dir, changes, dense_steps, average_every):
    sent = experiment.build(fixtures.tiny_config(data_dir, **changes)).communication
    assert (sent.dense_steps, sent.average_every) == (dense_steps, average_every)
