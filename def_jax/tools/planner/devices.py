"""Peak rates of accelerators, as their vendors state them: for bounds where nothing has been measured."""

from typing import NamedTuple

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
_H200 = 'https://www.nvidia.com/en-us/data-center/h200/'
_B200 = 'https://www.nvidia.com/en-us/data-center/hgx/'
_A10 = 'https://www.nvidia.com/en-us/data-center/products/a10-gpu/'
_L4 = 'https://www.nvidia.com/en-us/data-center/l4/'
_T4 = 'https://www.nvidia.com/en-us/data-center/tesla-t4/'
_ADA = 'https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf'
_TPU = 'https://cloud.google.com/tpu/docs/'
_AMD = 'https://www.amd.com/en/products/processors/server/epyc/4th-generation-9004-and-8004-series.html'


class Device(NamedTuple):
    """One accelerator."""

    title: str
    flops: float  # a second, of dense products in bfloat16; NVIDIA's table has twice that, with sparsity
    memory: float  # bytes a second
    capacity: float  # bytes of memory; 0 without memory of its own
    link: float | None  # bits a second that it can send to its neighbours; None without a link of its own
    source: str

    def step_time(self, params: float, flops: float, utilisation: float = 1.0) -> float:
        """Seconds of a step's computation; at a utilisation of 1 the least, since no device reaches its peak.

        Args:
            params: elements of the model, in float32.
            flops: floating-point operations of a worker's gradient.
            utilisation: share of the peak rates that the training reaches.

        Raises:
            ValueError: if `flops` or `utilisation` is out of range.

        >>> round(1e3 * DEVICES['h100'].step_time(params=85e6, flops=6 * 85e6 * 8192), 2)
        4.22
        """
        check_number('flops', flops, 0, 1e30, "operations of a worker's gradient")
        check_number('utilisation', utilisation, 0.001, 1, 'share of the peak rates that training reaches')
        return max(flops / self.flops, 4 * _PASSES * params / self.memory) / utilisation


#: By name, each with its source. Links are counted one way, where NVIDIA states the sum of both, and so does
#: Google by now (400, 800 and 1,200 GB/s); cards without NVLink have none. The T4, which knows no bfloat16,
#: counts float16. A B200's memory is an eighth of a DGX B200's. The A10G of AWS is another card than the A10.
DEVICES = {
    'b200': Device('NVIDIA B200', 2250e12, 8e12, 180e9, 8 * 900e9, _B200),
    'h200': Device('NVIDIA H200 SXM', 989.4e12, 4.8e12, 141e9, 8 * 450e9, _H200),
    'h100': Device('NVIDIA H100 SXM', 989.4e12, 3.35e12, 80e9, 8 * 450e9, _H100),
    'a100': Device('NVIDIA A100 SXM', 312e12, 2.039e12, 80e9, 8 * 300e9, _A100),
    'a10': Device('NVIDIA A10', 125e12, 600e9, 24e9, None, _A10),
    'l4': Device('NVIDIA L4', 121e12, 300e9, 24e9, None, _L4),
    't4': Device('NVIDIA T4', 65e12, 320e9, 16e9, None, _T4),
    '4090': Device('NVIDIA GeForce RTX 4090', 165.2e12, 1008e9, 24e9, None, _ADA),
    'v5e': Device('TPU v5e', 197e12, 819e9, 16e9, 1600e9, f'{_TPU}v5e'),
    'v5p': Device('TPU v5p', 459e12, 2765e9, 95e9, 4800e9, f'{_TPU}v5p'),
    'v6e': Device('TPU v6e', 918e12, 1638e9, 32e9, 3200e9, f'{_TPU}v6e'),
    # 3.7 GHz, and twelve channels of DDR5-4800 for all 96 cores. AMD does not state the 32 operations in
    # float32 of a cycle, two fused multiply-adds of 256 bits.
    'epyc': Device('one core of an AMD EPYC 9654', 32 * 3.7e9, 12 * 4800e6 * 8, 0, None, _AMD),
}


def get_device(name: str) -> Device:
    """The device called `name`, in any case; raises ValueError, naming the known ones, if there is none."""
    if name.lower() not in DEVICES:
        raise ValueError(
            f'device={name!r} is unknown; it must be one of {", ".join(DEVICES)}. For any other, pass the '
            'measured --step-time instead, and its --memory.'
        )
    return DEVICES[name.lower()]
