"""Peak rates of accelerators, as their vendors state them: for bounds where nothing has been measured."""

from typing import NamedTuple

from def_jax.baselines.methods import look_up
from def_jax.ground.arguments import check_number

__all__ = ['DEVICES', 'Device', 'get_device']

# Passes of a step over the parameters in memory, at least: both halves of the gradient read them, the second
# writes it, and momentum SGD's update reads three arrays and writes two.
_PASSES = 8
_H100 = 'https://www.nvidia.com/en-us/data-center/h100/'
_A100 = (
    'https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/'
    'nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf'
)
_TPU = 'https://cloud.google.com/tpu/docs/'
_AMD = 'https://www.amd.com/en/products/processors/server/epyc/4th-generation-9004-and-8004-series.html'


class Device(NamedTuple):
    """One accelerator."""

    title: str
    flops: float  # a second, of dense products in bfloat16; NVIDIA's table has twice that, with sparsity
    memory: float  # bytes a second
    link: float | None  # bits a second that it can send to its neighbours; None without a link of its own
    source: str

    def step_time(self, params: float, flops: float) -> float:
        """The least seconds of a step's computation: no device reaches its peak.

        Args:
            params: elements of the model, in float32.
            flops: floating-point operations of a worker's gradient.

        Raises:
            ValueError: if `flops` is out of range.

        >>> round(1e3 * DEVICES['h100'].step_time(params=85e6, flops=6 * 85e6 * 8192), 2)
        4.22
        """
        check_number('flops', flops, 0, 1e30, "operations of a worker's gradient")
        return max(flops / self.flops, 4 * _PASSES * params / self.memory)


#: By name, each with its source. Links are counted one way, where NVIDIA states the sum of both, and so does
#: Google by now (400 and 1,200 GB/s).
DEVICES = {
    'h100': Device('NVIDIA H100 SXM', 989.4e12, 3.35e12, 8 * 450e9, _H100),
    'a100': Device('NVIDIA A100 SXM, 80 GB', 312e12, 2.039e12, 8 * 300e9, _A100),
    'v5e': Device('TPU v5e', 197e12, 819e9, 1600e9, f'{_TPU}v5e'),
    'v5p': Device('TPU v5p', 459e12, 2765e9, 4800e9, f'{_TPU}v5p'),
    # 3.7 GHz, and twelve channels of DDR5-4800 for all 96 cores. AMD does not state the 32 operations in
    # float32 of a cycle, two fused multiply-adds of 256 bits.
    'epyc': Device('one core of an AMD EPYC 9654', 32 * 3.7e9, 12 * 4800e6 * 8, None, _AMD),
}


def get_device(name: str) -> Device:
    """The device called `name`; raises ValueError, naming those that are known, if there is none."""
    return look_up('device', name, DEVICES)
