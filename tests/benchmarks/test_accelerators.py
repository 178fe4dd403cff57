"""Programs for absent accelerators: how HLO is read, what misses an aim; with the plugin, what is copied."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest

from benchmarks import hlo as reading
from benchmarks.accelerators import page
from benchmarks.accelerators.programs import MAPPINGS
from benchmarks.accelerators.rows import Row
from benchmarks.accelerators.targets import TARGETS
from benchmarks.optimizers import OPTIMIZERS, SGD

HLO = """
%fused_add (p: f32[512,512]) -> f32[512,512] {
  %inside = f32[512,512]{1,0} copy(%p)
}
ENTRY %main () -> f32[512,512] {
  %start = bf16[600000]{0} all-reduce-start(%message)
  %moved = bf16[600000]{0} copy(%x)
  %large = f32[512,512]{1,0} copy(%y)
  %small = f32[64]{0} copy(%y)
  %product = f32[512,512]{1,0} fusion(%y), metadata={op_name="jit(step)/transpose(jvp(loss))/dot"}
  %update = f32[512,512]{1,0} fusion(%product), metadata={op_name="jit(step)/add"}
  %done = bf16[600000]{0} all-reduce-done(%start)
}"""


def test_a_program_is_read():
    assert reading.copies(HLO, besides={600_000}) == {'f32[512,512]': 1}
    assert reading.copies(HLO) == {'f32[512,512]': 1, 'bf16[600000]': 1}
    assert reading.hidden(HLO) == [1]


def test_what_a_tpu_brings_back_from_the_chip_is_not_copied():
    updated = '  %updated = f32[512,512]{1,0:T(8,128)S(1)} dynamic-update-slice(%x)\n'
    back = '  %back = f32[512,512]{1,0:T(8,128)} copy(%updated)\n'
    again = '  %again = f32[512,512]{1,0:T(8,128)} copy(%back)\n'
    assert reading.copies(updated + back) == {}
    assert reading.copies(updated + back + again) == {'f32[512,512]': 1}


class Matrices:
    """A network of eight matrices of 4 MB, and forty biases: more tensors than a kernel of XLA's takes."""

    batch, has_images = (2, 1024), True

    def variables(self):
        matrices = {f'w{i}': jnp.zeros((1024, 1024)) for i in range(8)}
        return {'params': matrices | {f'b{i}': jnp.zeros(1024) for i in range(40)}}

    def loss(self, variables, inputs):
        params = variables['params']
        for i in range(8):
            inputs = jax.nn.relu(inputs @ params[f'w{i}'])
        return jnp.mean((inputs + sum(params[f'b{i}'] for i in range(40))) ** 2)


def compiled(row, target):
    lowered = MAPPINGS[row.mapping](Matrices(), OPTIMIZERS[row.optimizer], target.devices())
    shards = 8 if row.sharded else 1
    figures = {'devices': 8 * target.nodes, 'model': 4 * 8 * 1024**2 // shards, 'pairs': [0.0]}
    return reading.read(lowered, target.options) | figures


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_every_row_can_be_built(name):
    """What takes minutes to compile does not end in a missing argument."""
    params = {'w': jnp.zeros((64, 64)), 'b': jnp.zeros(64)}
    assert jax.eval_shape(OPTIMIZERS[name]('workers').init, params)


STACKED = [
    *('DEF, 1/64', 'DEF, 1/64, 16 bits', "DEF, 1/64, detach='auto'", 'DEF, 1/64, every=4'),
    *('DEF, 1/64, outer', 'DEF, 1/64, overlap', 'DEF around AdamW, 1/64', 'def_adamw, 1/256, 2 bits'),
    *('DEF-Q, 1/64, 2 bits', 'DEF-Q, 1/256, 2 bits', 'DEF-Q, 1/64, 2 bits, overlap'),
]


@pytest.mark.slow
@pytest.mark.skipif(
    not importlib.util.find_spec('jax_cuda12_plugin'), reason='make bench-compiled installs the plugin'
)
@pytest.mark.parametrize(
    ('target', 'mapping', 'optimizers'),
    [
        ('h100', 'shard_map', STACKED),
        ('h100', '2 virtual workers, vmap', ['DEF, 1/64']),
        ('h100x2', 'shard_map, a node inside', ['DEF, 1/64', 'DEF-Q, 1/64, 2 bits']),
        ('h100x2', 'spmd, FSDP inside', ['DEF, 1/64', 'DEF-Q, 1/64, 2 bits']),
    ],
)
def test_on_an_h100_no_option_copies(target, mapping, optimizers):
    """Without the barriers that put updates, a block or an outer momentum in memory, most of them do."""
    rows = {name: Row(target, 'matrices', mapping, name) for name in [SGD, *optimizers]}
    figures = {name: compiled(row, TARGETS[target]) for name, row in rows.items()}
    for name, row in rows.items():
        assert figures[name]['copies'] == {}, name
        assert page.misses(row, figures[name], figures[SGD]) == [], name
