"""A small model's step, compiled, and what its optimized HLO says about collectives and copies."""

import functools
import math
import re

import compressing
import jax
import jax.numpy as jnp
import optax

import def_jax
from def_jax.traffic.hlo import collectives

# Powers of two, so that ratio 64 divides every large leaf; the bias and the scale send one element each.
SHAPES = {'dense': (256, 128), 'kernel': (4, 4, 32, 64), 'bias': (64,), 'scale': ()}
LARGE = 256 * 128  # elements of the two large leaves
MODEL_SIZE = sum(math.prod(shape) for shape in SHAPES.values())
BATCH = jnp.ones((4, 256))


def make_params():
    return {name: jnp.ones(shape) for name, shape in SHAPES.items()}


def at_every_step(hlo):
    """The part of a program that is in no branch."""
    return hlo[hlo.index('\nENTRY') :]


def loss_fn(params, batch):
    hidden = jnp.mean(jnp.tanh(batch @ params['dense']))
    return params['scale'] * hidden * (jnp.mean(params['kernel'] ** 2) + jnp.mean(params['bias'] ** 2))


def with_gradient(last_link, detached=True, momentum=0.9):
    """A worker's whole step, with its gradient at the detached point or, for other links, at x."""
    optimizer = optax.chain(optax.sgd(0.1, momentum=momentum), last_link)

    def step(params, state, batch):
        point = def_jax.detached_params(params, state) if detached else params
        updates, state = optimizer.update(jax.grad(loss_fn)(point, batch), state, params)
        return optax.apply_updates(params, updates), state

    return optimizer, step


feedback = functools.partial(compressing.feedback, 64)


def compile_pmapped(optimizer, step, num_workers, batch, donate=()):
    params = make_params()
    arguments = jax.eval_shape(lambda: (params, optimizer.init(params), batch))
    stacked = jax.tree.map(lambda x: jax.ShapeDtypeStruct((num_workers, *x.shape), x.dtype), arguments)
    return jax.pmap(step, axis_name='workers', donate_argnums=donate).lower(*stacked).compile()


def compile_sharded(step, *arguments, donate=()):
    """Under shard_map over two workers, all arguments whole on each."""
    mesh, replicated = jax.make_mesh((2,), ('workers',)), jax.sharding.PartitionSpec()
    mapped = jax.shard_map(step, mesh=mesh, in_specs=replicated, out_specs=replicated, check_vma=False)
    return jax.jit(mapped, donate_argnums=donate).lower(*arguments).compile()


def all_reduces(program):
    """The elements of each all-reduce in the HLO of a program; others are not expected."""
    found = collectives(program)
    assert {(c.operation, c.dtype) for c in found} <= {('all-reduce', 'f32')}
    return [c.elements for c in found]


def compile_step(last_link, num_workers=4, **kwargs):
    return compile_pmapped(*with_gradient(last_link, **kwargs), num_workers, BATCH).as_text()


def copies_of(compiled, smallest):
    """How many float arrays of at least `smallest` elements the program copies in memory."""
    count, fused = 0, False
    for line in compiled.as_text().splitlines():
        if line[:1] not in ('', ' ', '}'):  # a computation begins; within a fusion only its result is written
            fused = line.startswith('%fused_computation')
        copy = re.match(r'\s*(ROOT )?\S+ = f32\[([\d,]*)\]\S* copy\(', line)
        if copy and (copy[1] or not fused):
            count += math.prod(map(int, filter(None, copy[2].split(',')))) >= smallest
    return count


def schedule(compiled):
    """What a program runs, in the order for which its memory was planned: names, operands and origins."""
    entry = at_every_step(compiled.as_text())
    lines = re.findall(r'^ +(?:ROOT )?%(\S+) = .*? [a-z][\w\-]*\((.*)', entry, re.MULTILINE)
    for name, rest in lines:
        origin = re.search(r'op_name="([^"]*)"', rest)
        yield name, re.findall(r'%([\w.\-]+)', rest.split(', metadata=')[0]), origin[1] if origin else ''
