"""All that def_jax uses of JAX without a public name: for processes that train together, not for training.

- `_src.distributed.global_state`, the client of the coordination service. Without it, there are no elastic
  runs, and the versions of processes are not compared.
- `_src.lib._jax` and `_src.xla_bridge`, for the address at which gloo listens. Without them, that is the one
  to which the machine's name leads.

Last seen with JAX 0.12.
"""

import warnings
from collections.abc import Callable
from typing import Any

import jax

try:
    from jax._src.distributed import global_state
except ImportError:
    global_state = None  # type: ignore[assignment]

__all__ = ['coordination', 'gloo_client']


def coordination() -> Any:
    """The coordination service: `client`, `process_id` and `num_processes`; None if unknown."""
    return global_state


def gloo_client(host: str) -> Callable[[], Any] | None:
    """What makes the backend of CPUs with a gloo that listens at `host`; None, with a warning, if unknown."""
    try:
        from jax._src import xla_bridge
        from jax._src.lib import _jax

        make_collectives, make_client = _jax.make_gloo_tcp_collectives, xla_bridge.make_cpu_client
    except (ImportError, AttributeError) as error:
        where = f'JAX {jax.__version__} does not let def_jax choose where gloo listens ({error})'
        warnings.warn(f'{where}: it listens at the address of this machine.', stacklevel=2)
        return None
    return lambda: make_client(
        collectives=make_collectives(distributed_client=coordination().client, hostname=host)
    )
