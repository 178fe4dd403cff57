"""What the compiled programs of a run send, for every method and granularity."""

import pytest
import training_fixtures as fixtures

from def_jax.trainer import communication, experiment


@pytest.mark.parametrize(
    # EF, PSync and DEF-A compile to what DEF does.
    ('method', 'workers_per_device'),
    [('sgd', 1), ('saef', 1), ('ef21', 1), ('def', 2)],
)
def test_a_step_all_reduces_the_message_and_nothing_else(data_dir, method, workers_per_device):
    config = fixtures.tiny_config(data_dir, method=method, workers_per_device=workers_per_device)
    run = experiment.build(config)
    compiled = communication.programs(run)
    train_step = next(compiled)
    sent = run.communication
    assert {c.operation for c in train_step.collectives} == {'all-reduce'}
    dense = [fixtures.NUM_PARAMS] * (method in ('ef21', 'saef'))  # in branches that are seldom taken
    sizes = [c.elements for c in train_step.collectives]
    assert sum(sizes) == sent.message_size + sum(dense) and train_step.bytes == 4 * train_step.elements
    assert sorted(sizes) == [sent.message_size, *dense] or method == 'sgd'  # which averages leaf by leaf
    assert train_step.executions == fixtures.NUM_STEPS
    if method in ('def', 'sgd'):  # the others compile no other programs than these two
        outputs, test_sums = compiled
        mean_residual = fixtures.NUM_PARAMS if method == 'def' else 0
        assert outputs.elements == mean_residual + 2 * 8  # and the mean and variance of eight channels
        assert test_sums.elements == 3 and outputs.executions == 4


# Eight runs cover the model; the last is shorter.
RUN = -(-fixtures.NUM_PARAMS // 8)


@pytest.mark.parametrize(
    ('changes', 'elements', 'bytes_each'),
    [
        ({'granularity': 'model', 'detach': 'auto', 'skip_nonfinite': True}, RUN + 1, 4),
        ({'granularity': 'element'}, fixtures.MESSAGE_SIZE, 4),
        # Two digits for each tensor and for the energy, and a flag.
        ({'wire_dtype': 'int8', 'detach': 'auto'}, fixtures.MESSAGE_SIZE + 2 * (5 + 1) + 1, 1),
    ],
    ids=str,
)
def test_granularities_and_options_are_counted(data_dir, changes, elements, bytes_each):
    run = experiment.build(fixtures.tiny_config(data_dir, **changes))
    sent = run.communication
    (collective,) = next(communication.programs(run)).collectives
    assert (collective.elements, collective.bytes) == (elements, elements * bytes_each)
    assert (sent.message_size, sent.bytes_per_step) == (elements, elements * bytes_each)
    assert sent.megabytes_sent(3) == pytest.approx(3 * elements * bytes_each / 1e6)


@pytest.mark.parametrize(
    ('options', 'steps', 'elements'),
    [
        ({}, 0, 0),
        ({}, 7, 7 * 10),
        ({'dense_steps': 1}, 0, 0),  # EF21 starts with a whole gradient
        ({'dense_steps': 1}, 7, 100 + 6 * 10),
        ({'average_every': 3}, 7, 7 * 10 + 2 * 100),  # SAEF averages the residuals
        ({'dense_steps': 5}, 7, 5 * 100 + 2 * 10),  # 1-bit Adam starts dense
        ({'every': 3, 'always': 4}, 7, 7 * 4 + 2 * 10),  # CSER
    ],
)
def test_dense_messages_are_counted(options, steps, elements):
    communication = experiment.Communication(num_params=100, message_size=10, **options)
    assert communication.megabytes_sent(steps) == pytest.approx(4 * elements / 1e6)


def test_methods_with_dense_messages(data_dir):
    def of(**changes):
        run = experiment.build(fixtures.tiny_config(data_dir, **changes))
        return run.communication

    assert (of(method='ef21').dense_steps, of(method='def').dense_steps) == (1, 0)
    assert of(method='onebit_adam', freeze_after=7).dense_steps == 7
    assert of(method='saef', average_every=5).average_every == 5
    assert of(method='def', average_every=5).average_every == 0  # which has no use for it
