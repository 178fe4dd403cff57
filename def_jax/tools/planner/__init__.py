"""Whether compression pays off: predicts the time of a step from the model's size and the network.

    python -m def_jax.plan --params=25.6M --step-time=0.12 --bandwidth=10gbit --workers=64
    python -m def_jax.plan --params=25.6M --step-time=0.12 --measure

prints the time of a step and a device's memory for dense training in bfloat16, DEF-Q, DiLoCo and PowerSGD,
and the line to paste for the one to start with, which may be dense training. A worker is what lies on one
side of the slow line: a rack, a node or a GPU. `--measure` times the line itself.

    python -m def_jax.plan --params=7B --step-time=3 --bandwidth=100gbit --workers=16 --gpus-per-link=8 --fsdp

compares what sixteen nodes of eight GPUs with one link each can do: dense training with FSDP over all of them
and inside a node, and a node as a worker with FSDP inside. Without `--fsdp` every GPU holds the whole model.

This is a model. It assumes that a ring all-reduce of n bytes over K workers takes

    2 (K - 1) / K · n / bandwidth  +  2 (K - 1) · latency,

that DEF-Q's all-to-all and all-gather take as long as an all-reduce, and that a step first computes and then
communicates. What G GPUs exchange behind one link of K takes no time. A hierarchical exchange sends from a
link what is above. A flat one has K·G parties: a ring sends 2 (K·G - 1) / (K·G) · n from each link, but an
all-to-all G · (K - 1) / K · n, since every GPU sends to every other by itself. FSDP over all GPUs gathers the
parameters twice and scatters the gradients once: one and a half times a ring's all-reduce.

`overlap` is the fraction of a dense all-reduce hidden behind the backward pass; `--dense-step`, your step
with all workers, laid out as in the table's first row, says how much that is. The message of error feedback
needs the whole gradient, so none of it is hidden, unless it is `in_flight` while the next gradient is
computed: then a step takes the longer of the two. One worker alone that takes the batches of all K computes
for K times as long, and may still be faster.

Without a measured step, `--device=h100 --flops=4.2e12 --utilisation=0.4` estimates it from the device's peak
rates, of those that `--device` knows; without `--utilisation` that is the least time that they allow.
"""

import dataclasses
import re
from pathlib import Path

from def_jax.ground.arguments import check_flag, check_number, check_ratio

__all__ = ['Plan', 'draw', 'parse_bandwidth', 'parse_size']

_UNITS = {'k': 1e3, 'm': 1e6, 'g': 1e9, 'b': 1e9, 't': 1e12}
LEAST_BANDWIDTH = 1e4  # bits per second; a smaller number has probably lost its unit
_NUMBER = r'([\d.]+(?:[eE][+-]?\d+)?)'


@dataclasses.dataclass(frozen=True)
class Plan:
    """A cluster and a model. All times are in seconds, all sizes in bytes.

    Attributes:
        params: d, the number of elements in the model.
        step_time: computation time of a step on one worker, without communication.
        bandwidth: of a worker's link, in bits per second.
        workers: K; with `gpus_per_link`, the number of links.
        latency: of one message between neighbours.
        overlap: fraction of a dense all-reduce hidden behind the computation, in [0, 1]; None if that is not
            known, which counts as 0.
        in_flight: whether a message travels while the next gradient is computed, as `overlap=True` has it.
        overhead: extra time of the compressed update over the dense one.
        dense_bytes: bytes per element of the dense all-reduce: 2 in bfloat16, 4 in float32.
        evaluate_every: steps between evaluations of y, each a dense all-reduce; 0 for only the final one.
        num_steps: steps in the run, over which the cost of the final y is spread.
        gpus_per_link: G, how many GPUs share a link. Together they are one worker, or, `flat`, each is one.
        fsdp: whether the GPUs of a link shard the parameters; otherwise each holds all.
        memory: of a device; 0 if unknown.

    Raises:
        ValueError: if an argument is out of range.

    >>> plan = Plan(params=25.6e6, step_time=0.12, bandwidth=10e9, workers=64)
    >>> round(plan.dense_step(), 3), round(plan.step(ratio=64), 3), round(plan.speed_up(64), 2)
    (0.207, 0.129, 1.61)
    """

    params: float
    step_time: float
    bandwidth: float
    workers: int
    latency: float = 50e-6
    overlap: float | None = None
    overhead: float = 0.0
    dense_bytes: int = 2
    evaluate_every: int = 0
    num_steps: int = 100_000
    in_flight: bool = False
    gpus_per_link: int = 1
    fsdp: bool = False
    memory: float = 0.0

    def __post_init__(self) -> None:
        # The limits keep every time finite and positive.
        check_number('params', self.params, 1, 1e18, 'elements in the model')
        check_number('step_time', self.step_time, 1e-9, 1e9, 'seconds of computation')
        least, unit = LEAST_BANDWIDTH, "bits per second, or with a unit, as '10gbit'"
        check_number('bandwidth', self.bandwidth, least, 1e18, unit)
        check_number('workers', self.workers, 1, 1e9, 'K')
        check_number('latency', self.latency, 0, 1e9, 'seconds per message')
        if self.overlap is not None:
            check_number('overlap', self.overlap, 0, 1, 'fraction of a dense all-reduce that is hidden')
        check_number('overhead', self.overhead, 0, 1e9, 'seconds per step')
        check_number('dense_bytes', self.dense_bytes, 1, 8, 'bytes per element of the dense all-reduce')
        check_number('evaluate_every', self.evaluate_every, 0, 1e18, 'steps, 0 for never')
        check_number('num_steps', self.num_steps, 1, 1e18, 'steps in the run')
        check_flag('in_flight', self.in_flight)
        check_number('gpus_per_link', self.gpus_per_link, 1, 1e6, 'GPUs that share a link')
        check_flag('fsdp', self.fsdp)
        check_number('memory', self.memory, 0, 1e18, "bytes of a device's memory, 0 if unknown")
        if self.fsdp and self.gpus_per_link == 1:
            raise ValueError(
                'fsdp=True needs gpus_per_link > 1: as many GPUs shard the parameters of a worker.'
            )

    def parties(self, flat: bool) -> float:
        """How many take part in an exchange: all GPUs if it is flat, or the links."""
        return self.workers * (self.gpus_per_link if flat else 1)

    def ring(self, size: float, flat: bool = False) -> float:
        """What leaves a link in an all-reduce."""
        return 2 * (1 - 1 / self.parties(flat)) * size

    def halves(self, size: float, flat: bool = False) -> float:
        """What leaves a link in an all-to-all, and an all-gather in a ring."""
        senders = self.gpus_per_link if flat else 1
        return senders * (1 - 1 / self.workers) * size + self.ring(size, flat) / 2

    def seconds(self, sent: float, flat: bool = False) -> float:
        """Of an exchange, by what leaves a link."""
        return 8 * sent / self.bandwidth + 2 * (self.parties(flat) - 1) * self.latency

    def all_reduce(self, elements: float, element_bytes: float = 4, flat: bool = False) -> float:
        """Time of a ring all-reduce of `elements` elements, in float32 unless told otherwise."""
        return self.seconds(self.ring(element_bytes * elements, flat), flat)

    def dense_step(self, flat: bool = False) -> float:
        """Time of a step of uncompressed training."""
        shown = 1 - (self.overlap or 0.0)
        return self.step_time + shown * self.all_reduce(self.params, self.dense_bytes, flat)

    def sharded_step(self) -> float:
        """Time of a step with FSDP over all GPUs: two all-gathers and a reduce-scatter, in a ring of all."""
        return self.step_time + 1.5 * (self.dense_step(flat=True) - self.step_time)

    def hidden(self, dense_step: float) -> float:
        """The `overlap` that makes `dense_step` what was measured, at most 1 and at least 0.

        >>> plan = Plan(params=25.6e6, step_time=0.12, bandwidth=10e9, workers=64)
        >>> round(plan.hidden(dense_step=0.15), 2)
        0.65
        """
        check_number('dense_step', dense_step, 1e-9, 1e9, 'seconds of a step with all workers')
        shown = dense_step - self.step_time
        whole = self.all_reduce(self.params, self.dense_bytes)
        return min(1.0, max(0.0, 1 - shown / whole)) if whole else 0.0

    def step(self, ratio: float, flat: bool = False) -> float:
        """Time of a step that sends 1 / ratio of the bytes of float32, and its share of y's evaluations."""
        check_ratio(ratio)
        outputs = 1 + (self.num_steps // self.evaluate_every if self.evaluate_every else 0)
        dense_share = outputs * self.all_reduce(self.params, flat=flat) / self.num_steps
        message = self.seconds(self.halves(4 * self.params / ratio, flat), flat)
        both = max(self.step_time, message) if self.in_flight else self.step_time + message
        return both + self.overhead + dense_share

    def speed_up(self, ratio: float) -> float:
        """The speed-up of error feedback over dense training."""
        return self.dense_step() / self.step(ratio)


def parse_bandwidth(text: str) -> float:
    """Bits per second from '10gbit', '800mbit' or '2.5e9', or from bytes: '10GB/s', with a capital B.

    Raises:
        ValueError: if the text is not a bandwidth.

    >>> parse_bandwidth('10gbit'), parse_bandwidth('10 GBps')
    (10000000000.0, 80000000000.0)
    """
    unit = r'(?:([kmgtKMGT])?((?i:bits?)(?:/s)?|b(?:ps|/s)|B(?:ps|/s))?)?'
    match = re.fullmatch(rf'{_NUMBER}\s*{unit}', str(text).strip())
    try:
        scale = _UNITS.get((match[2] or '').lower(), 1.0)  # type: ignore[index]
        return float(match[1]) * scale * (8 if match[3] in ('Bps', 'B/s') else 1)  # type: ignore[index]
    except (TypeError, ValueError):
        raise ValueError(
            f"bandwidth={text!r} must be in bits per second, such as '10gbit', '800mbit' or '1e9', or in "
            "bytes per second, such as '10GB/s'."
        ) from None


def parse_size(text: str, name: str = 'size') -> float:
    """A number from '7B', '25.6M' or '1.3e9'; of bytes, '80GB' and '80G' are the same.

    Args:
        text: the number and its unit.
        name: what an error calls it.

    Raises:
        ValueError: if the text is not a size.

    >>> parse_size('7B'), parse_size('25.6M')
    (7000000000.0, 25600000.0)
    """
    match = re.fullmatch(rf'{_NUMBER}\s*([kmgt]b?|b?)', str(text).strip(), re.IGNORECASE)
    try:
        return float(match[1]) * _UNITS.get(match[2][:1].lower(), 1.0)  # type: ignore[index]
    except (TypeError, ValueError):
        raise ValueError(f"{name}={text!r} must be a number such as '7B', '25.6M' or '1.3e9'.") from None


def draw(plan: Plan, path: str) -> None:
    """Plots the speed-up against the bandwidth for each ratio, and against the workers at ratio 64."""
    from def_jax.tools import pictures  # with matplotlib, which the rest of the library does not need

    size, milliseconds = f'{plan.params:,.0f} parameters', f'{1e3 * plan.step_time:g} ms per step'
    title = f'Predicted, not measured: {size}, {milliseconds}'
    with pictures.panels(Path(path), 1, 2, title) as ((by_bandwidth, by_workers),):
        bandwidths, ratios = [10 ** (8 + i / 10) for i in range(41)], (16, 64, 256, 1024)
        for i, ratio in enumerate(ratios):
            speed_ups = [dataclasses.replace(plan, bandwidth=b).speed_up(ratio) for b in bandwidths]
            style = pictures.variant_style(pictures.COLORS['DEF'], i, len(ratios))
            by_bandwidth.plot([b / 1e9 for b in bandwidths], speed_ups, label=f'1/{ratio}', **style)
        workers, lines = [2**i for i in range(1, 13)], (1e9, 10e9, 100e9, 400e9)
        for i, bandwidth in enumerate(lines):
            plans = [dataclasses.replace(plan, workers=k, bandwidth=bandwidth) for k in workers]
            style = pictures.variant_style(pictures.COLORS['DEF'], i, len(lines))
            label = f'{bandwidth / 1e9:g} Gbit/s'
            by_workers.plot(workers, [p.speed_up(64) for p in plans], label=label, **style)
        by_bandwidth.set(xlabel='bandwidth, Gbit/s', title=f'{plan.workers:g} workers')
        by_workers.set(xlabel='workers', title='1/64 of the elements')
        for axes in (by_bandwidth, by_workers):
            axes.set(xscale='log', ylabel='speed-up over dense')
            pictures.log_y(axes)
            axes.axhline(1, color=pictures.COLORS['SGD'], linewidth=0.8)
        by_bandwidth.legend()
        by_workers.legend(loc='center', ncols=2)
