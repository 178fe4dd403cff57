"""The accelerators that are compiled for: XLA's compilers for them need no device, only their plugins."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.experimental import topologies

__all__ = ['SLOW_LINE', 'TARGETS', 'Target', 'Unavailable']


class Unavailable(Exception):
    """A compiler or a topology that this environment does not have; the message is one line."""


class Target(NamedTuple):
    """Devices of one kind, and how they are joined."""

    title: str
    platform: str
    topology: str  # as its compiler writes it
    nodes: int = 1  # groups of devices with fast links inside

    def devices(self) -> np.ndarray:
        """The absent devices, [nodes, devices of a node].

        Raises:
            Unavailable: if the plugin is missing or does not know the topology.
        """
        options: dict[str, Any] = {}
        if self.platform == 'cuda':
            options |= {'topology': self.topology, 'target_config': _H100.read_text()}
        elif self.nodes > 1:
            options |= {'num_slices': self.nodes}
        try:
            found = topologies.get_topology_desc(
                platform=self.platform, topology_name=self.topology, **options
            )
        except Exception as error:  # of a type that depends on the plugin
            raise Unavailable(
                f'{self.title} cannot be compiled for ({" ".join(str(error).split())[:120]}). '
                '`make bench-compiled` installs the compilers; --help lists the targets.'
            ) from error
        return np.reshape(found.devices, (self.nodes, -1))

    @property
    def options(self) -> dict[str, Any]:
        """For `lowered.compile`: what would need the device is turned off."""
        return {'xla_gpu_autotune_level': 0} if self.platform == 'cuda' else {}

    @property
    def compiler(self) -> str:
        return {'cuda': 'jax-cuda12-pjrt', 'tpu': 'libtpu'}[self.platform]


# XLA for GPUs starts a message as early as the line between nodes demands, as far as it knows the line: here
# 0.1 GB/s, XLA's unit, and a millisecond there and back.
SLOW_LINE = (
    '--xla_gpu_analytical_latency_estimator_options=nic_speed_gbps=0.1,rtt_us=1000,nccl_op_launch_us=100,'
    'chunk_prep_us=10,gpus_per_node=8,chunk_size_bytes=1048576'
)
_H100 = Path(__file__).with_name('h100.txtpb')

# A CUDA topology is slices × processes × devices of a process.
TARGETS = {
    'h100': Target('8 H100, one node', 'cuda', '1x1x8'),
    'h100x2': Target('16 H100, two nodes', 'cuda', '2x1x8', nodes=2),
    'v5e': Target('TPU v5e 2x4', 'tpu', 'v5e:2x4'),
    'v5ex2': Target('two slices of TPU v5e 2x4', 'tpu', 'v5e:2x4', nodes=2),
}
