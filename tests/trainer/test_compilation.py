"""What the compiled programs of a run send, and what is counted without compiling."""

import pytest
import training_fixtures as fixtures

from def_jax.traffic.hlo import collectives
from def_jax.trainer import compilation, experiment


def sent_by(program, run):
    """What a device passes to the collectives of a program."""
    return [collective.passed(len(run.workers.devices)) for collective in collectives(program.hlo)]


@pytest.mark.parametrize(
    ('changes', 'bits', 'dense', 'mean_residual'),
    [
        # EF21 has a whole gradient in the branch of the first step.
        ({'method': 'ef21'}, 32, [fixtures.NUM_PARAMS], 0),
        ({'bits': 16, 'skip_nonfinite': True, 'workers_per_device': 2}, 16, [], fixtures.NUM_PARAMS),
    ],
    ids=['ef21', 'def'],
)
def test_a_step_all_reduces_the_message_and_nothing_else(data_dir, changes, bits, dense, mean_residual):
    run, message = experiment.build(fixtures.tiny_config(data_dir, **changes)), fixtures.MESSAGE_SIZE
    programs = list(compilation.programs(run))
    assert [program.executions for program in programs[:2]] == [fixtures.NUM_STEPS, 4]
    train_step, outputs, test_sums = (sent_by(program, run) for program in programs)
    assert {collective.operation for collective in train_step} == {'all-reduce'}
    assert sorted(collective.elements for collective in train_step) == [message, *dense]
    # The mean and variance of eight channels; loss, accuracy and count.
    elements = [sum(each.elements for each in sent) for sent in (outputs, test_sums)]
    assert elements == [mean_residual + 2 * 8, 3]
    sent = run.communication
    assert (sent.message_size, sent.bytes_per_step) == (message, bits * message // 8)
    assert sent.dense_steps == len(dense)


def test_a_message_in_few_bits_is_what_the_two_halves_of_an_all_reduce_carry(data_dir):
    """Scattered in chunks with their units, and gathered; a network of 75 k parameters at 64."""
    changes = dict(method='def_q', ratio=64, model='resnet8', model_options={})
    run = experiment.build(fixtures.tiny_config(data_dir, **changes))
    step = sent_by(next(compilation.programs(run)), run)
    halves = {collective.operation: collective.bytes for collective in step}
    assert halves.keys() == {'all-to-all', 'all-gather'}
    sent = run.communication
    assert sent.bytes_per_step == halves['all-to-all'] == pytest.approx(halves['all-gather'] * 4, rel=0.2)
    assert sent.bytes_per_step * 64 == pytest.approx(sent.dense_bytes_per_step, rel=0.05)
    assert sent.true_ratio == pytest.approx(4, rel=0.05)  # blocks of a quarter, in two bits
    passed = halves['all-to-all'] / 2 + halves['all-gather'] * fixtures.NUM_WORKERS / 2
    assert run.on_the_wire.bytes_per_step == passed
    virtual = experiment.build(fixtures.tiny_config(data_dir, workers_per_device=2, **changes))
    assert (virtual.communication, virtual.on_the_wire) == (sent, run.on_the_wire)


def test_the_devices_of_a_worker_send_its_message_together(data_dir):
    """And nothing else leaves a node that is one."""
    changes = dict(method='def_q', ratio=64, model='resnet8', model_options={}, num_workers=2, inside=2)
    run = experiment.build(fixtures.tiny_config(data_dir, **changes))
    found = collectives(next(compilation.programs(run)).hlo)
    nodes = [collective.passed(4, nodes=[0, 0, 1, 1]).node_bytes for collective in found]
    sent = run.communication
    assert sent.bytes_per_step == pytest.approx(sum(nodes), rel=0.01)
    assert sent.bytes_per_step * 64 == pytest.approx(sent.dense_bytes_per_step, rel=0.05)
    assert sent.true_ratio == pytest.approx(4, rel=0.05)


def test_evaluations_have_programs_of_their_own(data_dir):
    changes = dict(method='psync', recalibrate_batches=2, evaluate_train_examples=10)
    run = experiment.build(fixtures.tiny_config(data_dir, **changes))
    executions = {name: count for name, _, count in compilation.programs(run)}
    of_all = 4 * (2 + fixtures.NUM_WORKERS)  # evaluations of x, y, and each worker's own
    assert executions["a worker's own parameters"] == 4 * fixtures.NUM_WORKERS
    assert executions['batch statistics'] == 2 * of_all
    batches = sum(len(list(run.test_batches(run.evaluated[split]))) for split in ('test', 'train'))
    assert executions['test sums'] == batches * 2 * of_all


@pytest.mark.parametrize(
    ('options', 'steps', 'elements'),
    [
        ({}, 7, 7 * 10),
        ({'message_bytes': 10}, 8, 2 * 10),  # of 8 bits
        ({'dense_steps': 1}, 0, 0),  # EF21 starts with a whole gradient
        ({'dense_steps': 5}, 7, 5 * 100 + 2 * 10),  # 1-bit Adam starts dense
        ({'average_every': 3}, 7, 7 * 10 + 2 * 100),  # SAEF averages the residuals
        ({'every': 3, 'always': 4}, 7, 7 * 4 + 2 * 10),  # CSER
        ({'every': 3, 'overlap': True}, 7, 3 * 10),  # in steps 0, 3 and 6
    ],
)
def test_messages_are_counted(options, steps, elements):
    sent = experiment.Communication(100, 10, **{'message_bytes': 40} | options)
    assert sent.megabytes_sent(steps) == pytest.approx(4 * elements / 1e6)
    if not sent.dense_steps:  # in the long run, but for half a byte a step
        assert sent.megabytes_sent(3000) == pytest.approx(3000 * sent.bytes_per_step / 1e6, abs=0.0015)


@pytest.mark.parametrize(
    ('changes', 'dense_steps', 'average_every'),
    [
        ({'method': 'onebit_adam', 'freeze_after': 7}, 7, 0),
        ({'method': 'saef', 'average_every': 5}, 0, 5),
    ],
    ids=str,
)
def test_methods_with_dense_messages(data_dir, changes, dense_steps, average_every):
    sent = experiment.build(fixtures.tiny_config(data_dir, **changes)).communication
    assert (sent.dense_steps, sent.average_every) == (dense_steps, average_every)
