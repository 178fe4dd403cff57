"""How many files of the library a gradient crosses in one update: what a reader has to open.

`python tests/test_walk.py` prints them, in the order in which they are entered.
"""

import itertools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

import def_jax

LIBRARY = Path(def_jax.__file__).parent


def walk(num_leaves=1):
    """The file of every call within the library while one update of Algorithm 1 is traced."""
    optimizer = def_jax.error_feedback(def_jax.random_block(64), 'workers')
    params, files = [jnp.zeros((64, 64))] * num_leaves, []

    def note(frame, event, _):
        path = Path(frame.f_code.co_filename)
        if event == 'call' and path.is_relative_to(LIBRARY):
            files.append(str(path.relative_to(LIBRARY)))

    def update(grads):
        state, before = optimizer.init(params), sys.getprofile()
        sys.setprofile(note)
        try:
            return optimizer.update(grads, state, params)
        finally:
            sys.setprofile(before)

    grads = jax.tree.map(lambda x: jnp.zeros((2, *x.shape)), params)
    jax.make_jaxpr(jax.vmap(update, axis_name='workers'))(grads)
    return files


def test_a_leaf_crosses_few_files():
    assert len(set(walk())) <= 7


if __name__ == '__main__':
    found, two = walk(), walk(2)
    changes = sum(a != b for a, b in itertools.pairwise(found))
    print(*dict.fromkeys(found), sep='\n')
    print(f'{len(set(found))} files, {changes} changes of file, {len(found)} calls; of two leaves {len(two)}')
