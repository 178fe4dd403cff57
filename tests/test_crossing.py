"""`def_jax.check` on compiled steps: what it counts, and what it finds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compressing import feedback
from jax import P
from pmap_training import DATA, DEVICES, NUM_WORKERS, PARAMS, averaged, compiled, plain_step, stacked, wrapper

import def_jax
from def_jax.traffic import traffic


def test_a_hidden_mean_is_found():
    optimizer = wrapper(bits=2)
    arguments = *stacked((PARAMS, optimizer.init(PARAMS))), DATA[:, 0]
    program = compiled(functools.partial(plain_step, optimizer, change=averaged), *arguments)
    with pytest.raises(ValueError, match=r'look for a jax.lax.pmean.*DynamicScale\(axis_name=') as error:
        def_jax.check(program, optimizer, PARAMS)
    assert 'hold a whole gradient, which has 544' in str(error.value)
    assert 'allow them by besides' not in str(error.value)
    program = compiled(functools.partial(plain_step, optimizer), *arguments)
    found = {c.operation: c.bytes for c in def_jax.check(program, optimizer, PARAMS, besides=0)}
    sent = traffic(optimizer, PARAMS, 'workers', {'workers': NUM_WORKERS}).always
    message = {m.operation: m.bytes for m in sent}
    whole, kept = message['all-to-all'], message['all-to-all'] // NUM_WORKERS
    assert found == message | {'all-to-all': whole - kept}  # a worker keeps its part
    with pytest.raises(ValueError, match=rf'has {whole - kept + message["all-gather"]} \(and besides=-1'):
        def_jax.check(program, optimizer, PARAMS, besides=-1)
    with pytest.raises(ValueError, match=r'stacked over workers, as \(4, .*Pass one copy'):
        def_jax.check(program, optimizer, arguments[0])  # whose message would hide a dense mean
    with pytest.raises(ValueError, match=r"axis_name='batch' must be the optimizer's.*'gpus'"):
        def_jax.check(program, optimizer, PARAMS, 'batch')
    with pytest.raises(ValueError, match=r'^check: .* is inside optax.MultiSteps, .* every=\.\.\. of'):
        def_jax.check(program, optax.MultiSteps(optimizer, 4), PARAMS)


def test_a_message_in_bfloat16_may_be_summed_in_float32():
    """As XLA for CPUs does, in twice the bytes, which a dense mean beside it does not hide behind."""
    optimizer = wrapper(bits=16)
    arguments = *stacked((PARAMS, optimizer.init(PARAMS))), DATA[:, 0]
    (found,) = def_jax.check(
        compiled(functools.partial(plain_step, optimizer), *arguments), optimizer, PARAMS, besides=0
    )
    (message,) = traffic(optimizer, PARAMS, 'workers', {'workers': NUM_WORKERS}).always
    assert found.bytes - found.padding == message.bytes
    with pytest.raises(ValueError, match='hold a whole gradient, which has 544'):
        program = compiled(functools.partial(plain_step, optimizer, change=averaged), *arguments)
        def_jax.check(program, optimizer, PARAMS, besides=0)


def test_a_program_of_several_steps_is_checked_by_their_number():
    optimizer = wrapper(bits=2)

    def steps(params, state, data):
        def body(carry, batch):
            return plain_step(optimizer, *carry, batch), ()

        return jax.lax.scan(body, (params, state), data)[0]

    arguments = *stacked((PARAMS, optimizer.init(PARAMS))), DATA[:, :3]
    program = compiled(steps, *arguments)
    assert any(c.times == 3 for c in def_jax.check(program, optimizer, PARAMS, besides=0, steps=3))
    with pytest.raises(ValueError, match='It has a loop: if each turn calls update, pass steps='):
        def_jax.check(program, optimizer, PARAMS, besides=0)
    with pytest.raises(ValueError, match='steps=0'):
        def_jax.check(program, optimizer, PARAMS, steps=0)


@pytest.mark.parametrize(
    ('optimizer', 'missing', 'given'),
    [
        (
            optax.chain(wrapper(), optax.scale_by_backtracking_linesearch(2)),
            'value_fn',
            {'value': 0.0, 'grad': PARAMS, 'value_fn': lambda x: jnp.float32(0)},
        ),
        (
            optax.contrib.sam(wrapper(), optax.sgd(0.1), opaque_mode=True),
            "unexpected keyword argument 'value'",
            {'grad_fn': lambda x, _: x},
        ),
    ],
    ids=['line search', 'sam'],
)
def test_other_extra_arguments_are_given_to_check_with_the_optimizer(optimizer, missing, given):
    program = jax.jit(lambda x: x).lower(DATA).compile()
    with pytest.raises(TypeError, match=rf'lambda .* name=argument.*sam.* by: .*{missing}'):
        def_jax.check(program, optimizer, PARAMS)
    with_arguments = optax.GradientTransformationExtraArgs(
        optimizer.init, lambda grads, state, params, **_: optimizer.update(grads, state, params, **given)
    )
    assert def_jax.check(program, with_arguments, PARAMS) == []


def test_in_a_loop_of_unknown_length_a_hidden_mean_is_found():
    """It counted once, against the messages of all steps."""
    optimizer = wrapper(8)

    def steps(params, state, data, length, change):
        def body(step, carry):
            return plain_step(optimizer, *carry, data[step % 3], change)

        return jax.lax.fori_loop(0, length, body, (params, state))

    arguments = *stacked((PARAMS, optimizer.init(PARAMS))), DATA[:, :3], np.full(NUM_WORKERS, 64)
    right, wrong = (
        compiled(functools.partial(steps, change=change), *arguments) for change in (lambda g: g, averaged)
    )
    assert {c.times for c in def_jax.check(right, optimizer, PARAMS, besides=0, steps=64)} == {64}
    with pytest.raises(ValueError, match='hold a whole gradient'):
        def_jax.check(wrong, optimizer, PARAMS, steps=64)


def test_two_optimizers_in_one_step_are_checked_together():
    """As of a generator and its critic."""
    optimizers = wrapper(bits=2), wrapper(8, optax.sgd(0.1))
    params = PARAMS, {'critic': jnp.ones((16, 8))}

    def step(grads, states, params):
        return [o.update(g, s, p) for o, g, s, p in zip(optimizers, grads, states, params, strict=True)]

    states = [o.init(p) for o, p in zip(optimizers, params, strict=True)]
    program = compiled(step, *stacked((params, states, params)))
    assert def_jax.check(program, optimizers, params, besides=0)
    for one in range(2):
        with pytest.raises(ValueError, match=r'Or .* another optimizer in this step; if so, pass all'):
            def_jax.check(program, optimizers[one], params[one], besides=0)
    with pytest.raises(ValueError, match='optimizer has 2 elements, but params 1: pass those of each'):
        def_jax.check(program, optimizers, params[:1])
    with pytest.raises(ValueError, match='stacked over workers'):
        def_jax.check(program, optimizers, (params[0], stacked(params[1])))


def test_several_workers_on_a_node_are_noticed():
    """Each sends a message, where one with `inside=` would do, or none where all devices are one worker."""
    for inside in (None, 2, NUM_WORKERS):
        optimizer = wrapper(bits=2, inside=inside)
        program = compiled(
            functools.partial(plain_step, optimizer), *stacked((PARAMS, optimizer.init(PARAMS))), DATA[:, 0]
        )
        if inside:
            def_jax.check(program, optimizer, PARAMS, devices_per_node=inside)
        else:
            with pytest.warns(UserWarning, match='4 workers are on 2 nodes: .* by inside= '):
                def_jax.check(program, optimizer, PARAMS, devices_per_node=2)


def test_what_is_no_optax_transformation_is_refused():
    dist = def_jax.spmd(wrapper(), jax.make_mesh((NUM_WORKERS,), ('workers',), devices=DEVICES))
    program = jax.jit(lambda x: x).lower(DATA).compile()
    for optimizers, params in (
        (dist, PARAMS),
        ([dist, dist], [PARAMS] * 2),
        ({'g': wrapper()}, {'g': PARAMS}),
    ):
        with pytest.raises(TypeError, match=r'no optax transformation.*its own check, with others='):
            def_jax.check(program, optimizers, params)


def leaking(link):
    """A wrapper of one's own that adds a worker's gradients to the updates of a link."""

    def update(grads, state, params):
        updates, state = link.update(grads, state, params)
        return jax.tree.map(lambda u, g: u - 0.1 * g, updates, grads), state

    return optax.GradientTransformation(link.init, update)


TRAINED, FROZEN = {'w': True, 'b': False}, {'w': False, 'b': True}
ROLES = {'w': 'trained', 'b': 'other'}
MEAN = optax.chain(def_jax.all_reduce_mean('workers'), optax.sgd(0.1))


@pytest.mark.parametrize(
    ('optimizer', 'place'),
    [
        (optax.masked(wrapper(), TRAINED), r"updates\['b'\]"),
        (optax.chain(optax.masked(wrapper(), TRAINED), optax.ema(0.9)), r"updates\['b'\]"),
        (leaking(wrapper()), 'updates'),
        (optax.chain(optax.masked(wrapper(), TRAINED), optax.masked(optax.set_to_zero(), FROZEN)), None),
        (optax.multi_transform({'trained': wrapper(), 'other': optax.set_to_zero()}, ROLES), None),
        (optax.multi_transform({'trained': wrapper(bits=2, overlap=True), 'other': MEAN}, ROLES), None),
    ],
)
def test_what_reaches_x_without_an_exchange_is_found(optimizer, place):
    """`optax.masked` passes on the gradients of the leaves that it masks."""
    on_one_device = jax.jit(jax.vmap(lambda x: x, axis_name='workers')).lower(DATA).compile()
    for silent in (compiled(lambda x: x, DATA), on_one_device):
        if place is None:
            assert def_jax.check(silent, optimizer, PARAMS) == []
        else:
            match = rf'^{place}.* would differ between workers: .*multi_transform'
            with pytest.raises(ValueError, match=match):
                def_jax.check(silent, optimizer, PARAMS)


def test_simulated_workers_of_several_devices_are_checked_by_their_number():
    """A single device with workers of three simulated devices, or without an axis."""
    optimizer = wrapper(inside=3)
    for link, state in ((optimizer, stacked(optimizer.init(PARAMS))), (feedback(4, None), None)):
        state = jax.tree.map(lambda x: jnp.concatenate([x, x[:2]]), state)
        program = jax.jit(lambda state: state).lower(state).compile()
        assert def_jax.check(program, link, PARAMS) == []
    with pytest.raises(ValueError, match=r"axis_name='batch' must be the optimizer's.*'gpus'"):
        def_jax.check(program, optimizer, PARAMS, 'batch')


@pytest.mark.parametrize('joined', ['', 'by inside', 'by the step'])
def test_check_finds_devices_of_a_worker_that_join_no_gradients(joined):
    """Each trains with its counterparts alone, and `check_vma=False` takes out_specs' word that x is one."""
    inside = 'inside' if joined == 'by inside' else None
    optimizer, x = def_jax.def_sgd(0.1, 64, 'workers', inside=inside), jnp.ones(128)
    axes = 'workers', 'inside'
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]).reshape(2, 2), axes)
    specs = def_jax.state_specs(optimizer, x)

    def program_of(own):
        def step(x, state, batch):
            state = jax.tree.map(lambda leaf, mine: leaf[0] if mine else leaf, state, own)
            point = def_jax.detached_params(x, state)
            loss, grads = jax.value_and_grad(lambda x: jnp.mean(batch @ x))(point)
            grads = jax.lax.pmean(grads, 'inside') if joined == 'by the step' else grads
            updates, state = optimizer.update(grads, state, x)
            state = jax.tree.map(lambda leaf, mine: leaf[None] if mine else leaf, state, own)
            return optax.apply_updates(x, updates), state, jax.lax.pmean(loss, axes)

        lying = jax.tree.map(lambda mine: P('workers') if mine else P(), own)
        given, results = (P(), lying, P(axes)), (P(), lying, P())
        mapped = jax.shard_map(step, mesh=mesh, in_specs=given, out_specs=results, check_vma=False)
        state = jax.tree.map(lambda x, mine: jnp.stack([x] * 2) if mine else x, optimizer.init(x), own)
        laid = jax.tree.map(lambda spec: jax.NamedSharding(mesh, spec), given)
        return jax.jit(mapped, in_shardings=laid).lower(x, state, jnp.ones((8, 128))).compile()

    own = jax.tree.map(lambda spec: 'workers' in spec, specs)
    if joined:
        assert def_jax.check(program_of(own), optimizer, x)
    else:
        with pytest.raises(
            ValueError, match=r"over \['inside'\], but exchange 4 bytes: .* inside='inside' to"
        ):
            def_jax.check(program_of(own), optimizer, x)
        with pytest.raises(ValueError, match=r'as if all workers had the same, with .* def_jax.state_specs'):
            def_jax.check(program_of(jax.tree.map(lambda _: False, own)), optimizer, x)
