"""Collectives of any program: which devices exchange data, and whether they are of one worker."""

import jax
import pytest

from def_jax.tools.programs import main, summary
from def_jax.traffic import Message
from def_jax.traffic.crossing import Limits, check_crossing
from def_jax.traffic.hlo import Collective, collectives

LINE = 'r = f32[8]{0} all-reduce(x), channel_id=1, replica_groups='
ACROSS = ((0, 4), (1, 5), (2, 6), (3, 7))
WITHIN = ((0, 1, 2, 3), (4, 5, 6, 7))


@pytest.mark.parametrize(
    ('written', 'groups'),
    [
        ('{{0,4},{1,5},{2,6},{3,7}}, use_global_device_ids=true', ACROSS),
        ('[4,2]<=[2,4]T(1,0), to_apply=%add', ACROSS),
        ('[2,4]<=[8]', WITHIN),
        ("mesh['axis_0'=2,'axis_1'=4] {'axis_0'}, use_global_device_ids=true", ACROSS),
        ("mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", WITHIN),
        ("mesh['axis_0'=8] {'axis_0':(1)2}", ACROSS),
        ("mesh['axis_0'=8] {'axis_0':(2)4}", WITHIN),
        # The mesh's devices in another order: its axis of four is the shards, then the workers.
        ("mesh['axis_0'=4,'axis_1'=1,'axis_2'=2], device_ids=([2,4]T(1,0)) {'axis_0'}", WITHIN),
        ("mesh['axis_0'=1,'axis_1'=4,'axis_2'=2], device_ids=([2,4]T(1,0)) {'axis_2'}", ACROSS),
        ('{}', ()),
    ],
)
def test_groups_in_every_form(written, groups):
    (collective,) = collectives(LINE + written)
    assert tuple(map(tuple, map(sorted, collective.groups))) == groups
    assert collective.crosses([0] * 4 + [1] * 4) == (groups != WITHIN)


def test_numbers_of_any_type_have_a_size():
    (found,) = collectives('r = (f8e4m3fn[3,2]{1,0}, s4[4]{0}, pred[], c128[]) all-reduce(x, y, z, u)')
    assert (found.elements, found.bytes) == (12, 6 + 2 + 1 + 16)
    with pytest.raises(ValueError, match=r'all-reduce of token in the HLO: the size'):
        collectives('r = (f32[8]{0}, token[]) all-reduce(x, y)')


@pytest.mark.parametrize('written', ["mesh['a'=8] {'a':(3)2}", '<=?', "mesh['a'=8] {'b'}"])
def test_groups_in_an_unknown_form_are_refused(written):
    with pytest.raises(ValueError, match='unknown form'):
        collectives(LINE + written)


def test_the_program_sums_within_and_between(tmp_path, capsys):
    """What a device passes to a collective, not what it gets."""
    file = tmp_path / 'step.txt'
    lines = [LINE + '[4,2]<=[2,4]T(1,0)', LINE + '[2,4]<=[8]', LINE + '[2,4]<=[8]']
    lines += [lines[0].replace('all-reduce', name) for name in ('all-gather', 'reduce-scatter')]
    file.write_text('\n'.join(lines))
    assert main([str(file), '--workers=0,0,0,0,1,1,1,1']) == 0
    table = capsys.readouterr().out
    assert '| between workers | all-reduce | 1 | 8 | 32 |' in table
    assert '| between workers | all-gather | 1 | 4 | 16 |' in table
    assert '| between workers | reduce-scatter | 1 | 16 | 64 |' in table
    assert '| within a worker | all-reduce | 2 | 16 | 64 |' in table
    assert main([str(file), '--workers=0,0,0,0,1,1,1,1', '--devices-per-node=4']) == 0
    # In each pair of devices both send all of an all-reduce to the other, and four pairs share the link.
    assert '| between workers | all-reduce | 1 | 8 | 32 | 128 |' in capsys.readouterr().out
    assert main([str(file), '--workers=0,1']) == 2
    assert 'has 2 devices, but the program has device 7' in capsys.readouterr().err
    assert main([str(tmp_path / 'none.txt'), '--workers=0,1']) == 2


def test_a_collective_in_a_loop_counts_at_every_turn():
    mesh = jax.make_mesh((8,), ('workers',))

    def ten(x):
        return jax.lax.scan(lambda x, _: (jax.lax.psum(x, 'workers') / 8, None), x, length=10)[0]

    step = jax.jit(jax.shard_map(ten, mesh=mesh, in_specs=jax.P(), out_specs=jax.P(), check_vma=False))
    table = summary(step.lower(jax.numpy.ones(64)).compile().as_text(), range(8))
    assert '| between workers | all-reduce | 10 | 640 | 2,560 |' in table


def test_a_collective_that_several_fusions_hide_counts_once():
    """As XLA for TPUs writes it; on CPUs, all collectives of a program may have one channel."""
    plain = 'r = f32[8]{0} all-gather(x), channel_id=3, replica_groups={{0,1}}'
    hidden = f'{plain}, backend_config={{"async_collective_fusion_config":{{}}}}\n'
    assert len(collectives(2 * hidden + hidden.replace('=3', '=4'))) == 2
    assert len(collectives(2 * f'{plain}\n')) == 2


SLICES = (
    '%r = (s8[2,8,128]{2,1,0:T(8,128)(4,1)}, u32[]{:T(128)}, token[]) recv(%a), channel_id=1, '
    'frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_target="{1,2}x{0:3}",'
    '_xla_megascale_transfer_type="ALL_REDUCE"}'
)


def test_slices_of_tpus_exchange_by_send_and_recv():
    (found,) = collectives(f'{SLICES}\n{SLICES.replace("recv(%a)", "send(%b, %a)")}')
    assert found == Collective('all-reduce', 2048, 2048, ACROSS, '', 's8', padding=1023)
    with pytest.raises(ValueError, match='slices in an unknown form'):
        collectives(SLICES.replace('ALL_REDUCE', 'GOSSIP'))


def test_the_check_allows_for_tiles_that_are_filled_up():
    """A message of 1,025 bytes takes two tiles, as would one of up to 2,048."""

    def check(size):
        message = Message('all-reduce', size)
        across = [0, 0, 0, 0, 1, 1, 1, 1]
        check_crossing(compiled, across, [message], Limits(0, 1, None), ['nodes'], jax.numpy.ones(9))

    compiled = jax.jit(lambda x: x).lower(1.0).compile()
    compiled.as_text = lambda: SLICES
    check(1025)
    with pytest.raises(ValueError, match='passes 1,025 bytes'):
        check(1024)
