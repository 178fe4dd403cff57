"""Parameters narrower than float32: what x rounds is kept, on all workers alike.

x + u is rounded to the dtype of x, and an update below half a unit in its last place is lost, in dense
training too. Here what is missing from x afterwards joins the residual of every worker. So y = x + mean_k r_k
is a float32 master copy of the parameters, for no memory and no traffic. With `outer`, whose momentum would
amplify what is sent again, it has an array of its own in the state, and y contains that as well.
"""

import jax

from def_jax.compressors import Selection
from def_jax.ground.barriers import rounded
from def_jax.ground.types import PyTree
from def_jax.options import Reply
from def_jax.state.link import check_updates
from def_jax.wires import Route


def settled(
    route: Route, selection: Selection, reply: Reply, updates: PyTree, params: PyTree, held: PyTree
) -> tuple[jax.Array, jax.Array, PyTree]:
    """What x moves by, and what the worker has still to send, float32 [M], once updates and x have dtypes.

    x moves as by `optax.apply_updates`. What of the mean is missing from x after it is added to the rest, or
    with `outer` to `held`, the state's field `missing`, which is returned as well.
    The update is what x moves by once it is rounded: the sum is then exact, or nearly. XLA may keep it in
    float32 for what follows in the same program, as another update, and would undo what the rest counts on.
    """
    if params is None or all(x.dtype.itemsize >= 4 for x in jax.tree.leaves((params, updates))):
        return reply.mean, reply.rest, held
    check_updates(params, updates, 'params')
    x = selection.take(params)
    apart = bool(jax.tree.leaves(held))
    if apart:
        reply = reply._replace(mean=reply.mean + selection.take(held))
    dtypes = [(u.dtype, p.dtype) for u, p in zip(*map(jax.tree.leaves, (updates, params)), strict=True)]

    def moved(mean, x, dtypes):
        update = rounded(rounded(x + rounded(mean, dtypes[0]), dtypes[1]) - x, dtypes[0])
        return update, mean - (rounded(x + update, dtypes[1]) - x)

    if len(set(dtypes)) == 1:
        update, missing = moved(reply.mean, x, dtypes[0])
    else:
        means, xs = (route.layout.split(message, route.sizes) for message in (reply.mean, x))
        parts = [moved(*part) for part in zip(means, xs, dtypes, strict=True)]
        update, missing = (route.layout.join(column) for column in zip(*parts, strict=True))
    if apart:
        return update, reply.rest, selection.replace(held, missing)
    return update, reply.rest + missing, held
