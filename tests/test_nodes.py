"""What leaves a node: counted by hand, and in programs for two nodes of eight devices."""

import dataclasses
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from def_jax.tools.planner import Plan, comparison
from def_jax.tools.programs import summary
from def_jax.traffic.nodes import leaving

NODES = [0] * 8 + [1] * 8
PARAMS = 2**21
LOSS = 8  # the mean of a float32 in a ring of sixteen


@pytest.fixture(scope='module')
def found(environment):
    program = Path(__file__).parent / 'programs_of_nodes.py'
    done = subprocess.run(
        [sys.executable, program], env=environment, check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ('operation', 'groups', 'nodes', 'expected'),
    [
        ('all-reduce', ((0, 1), (2, 3)), [0, 0, 1, 1], 0),
        ('all-reduce', ((0, 2), (1, 3)), [0, 0, 1, 1], 2 * 16),  # each device sends 2 (S - 1) / S
        ('all-reduce', ((3, 0, 2, 1),), [0, 0, 1, 1], 24),  # one ring, in the devices' order
        ('all-reduce', (), [0, 1, 0, 1], 2 * 24),  # which leaves a node as often as it must
        ('all-gather', (), [0, 0, 1, 1], 3 * 16),
        ('reduce-scatter', (), [0, 0, 1, 1], 12),
        ('all-to-all', (), [0, 0, 1, 1], 4 * 4),  # two devices send a quarter to each of two others
        ('all-to-all', (), [0, 1, 1, 1], 3 * 4),  # as much as the three others together
        ('collective-permute', ((0, 1), (1, 2), (2, 3), (3, 0)), [0, 0, 1, 1], 16),
        ('collective-broadcast', ((0, 1, 2, 3),), [0, 0, 1, 1], 16),
        ('all-reduce', (), [0, 0, 0, 0], 0),
    ],
)
def test_what_leaves_a_node(operation, groups, nodes, expected):
    assert leaving(operation, 16, groups, nodes) == expected


def test_workers_of_one_device_send_more_than_their_share_from_a_node(found):
    """In few bits most parts of an all-to-all leave the node, where a ring leaves it once."""
    assert found['flat, 2 bits'] == 8 * 122_910 * 8 // 15 + 15 * 8_202 + LOSS == 647_446 + LOSS
    assert found['flat, 32 bits'] - found['dense'] // 64 == pytest.approx(0, abs=2 * LOSS)
    assert found['dense'] == 2 * 15 * 4 * PARAMS // 16 + LOSS


@pytest.mark.parametrize('layout', ['inside', 'shard_map', 'sharded', 'replicated'])
def test_a_worker_of_a_node_sends_one_message(found, layout):
    """A 64th of what the best dense all-reduce moves between the nodes."""
    assert found['hierarchical'] == 4 * PARAMS + LOSS
    assert 64 * found[layout] == pytest.approx(found['hierarchical'], rel=0.03)


def test_the_plan_agrees(found):
    plan = Plan(params=PARAMS, step_time=0.1, bandwidth=1e10, workers=2, gpus_per_link=8, dense_bytes=4)
    plans = plan, dataclasses.replace(plan, fsdp=True)
    planned = {each.name: each.sent for each in itertools.chain(*map(comparison.compare, plans))}
    for name, program in {
        'dense, float32, hierarchical': 'hierarchical',
        'dense, float32, one ring': 'dense',
        'DEF-Q, compression 64, inside=8': 'inside',
        'DEF-Q, compression 64, FSDP inside': 'sharded',
        'DEF-Q, compression 64, a GPU a worker': 'flat, 2 bits',
    }.items():
        assert planned[name] == pytest.approx(found[program], rel=0.05)


def test_more_than_the_message_is_found(found):
    for name, message in {
        'left in': r'a device passes 8,405,008 bytes to other workers, but the message has 16,396 .*whole '
        'gradient, which has 8,388,608: look for',
        'dense for DEF': 'a device passes 8,388,612 bytes to other workers, but the message has 131,112 ',
        'split': r'a node passes 18,.* bytes to other nodes, but the message has 65,584 .*'
        'devices_per_node=4 cuts workers of 8 devices apart: pass a multiple of 8',
        'interleaved': r'Devices of one worker .* as \(0, 2, 4, 6, 8, 10, 12, 14\) do: order the devices of',
        'does not divide': 'devices_per_node=3 must divide the 16 devices of the program',
    }.items():
        assert re.search(message, found[name])


def test_the_table_of_a_program_has_what_leaves_a_node(found):
    table = summary(found['HLO'], range(16), 8)
    assert '| between workers | all-to-all | 1 | 131,104 | 131,104 | 524,416 |' in table
    assert '| between workers | all-gather | 1 | 8,202 | 8,202 | 123,030 |' in table
    assert 'leaving a node' not in summary(found['HLO'], range(16))
