"""Messages of small integers: a quarter of the bytes of float32, added exactly by one all-reduce.

K workers send integers in [-L, L] with L = 127 // K, so that their sum fits into int8. An integer counts
units of its tensor, which all workers must know before they send. So each message also reports the mean
square of each tensor's block, relative to a running mean of the reports before it, which the workers share;
the next unit follows from that mean. What rounding and clipping take from a block stays in the residual.

A report travels as digits of base 2·L + 1, one int8 each. The sum of a digit over workers is exact, hence so
is that of the report.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from def_jax.beyond.base import Step, Wire
from def_jax.compressors.base import Compressor, concatenate
from def_jax.mesh.collectives import num_workers
from def_jax.types import AxisName, PyTree

__all__ = ['Integers', 'check_levels', 'loading']

_MEMORY = 0.75  # weight of the past in the running means
_LARGEST = 16.0  # times the running mean: what is larger is reported as that
_LOW, _HIGH = -64.0, 32.0  # powers of two: the range of what is reported for the first time
_BITS = 9  # in which a report travels


class Integers(Wire):
    """Sends messages as int8.

    Adds `wire_squares`, float32 [parts + numbers], to the state: for each tensor, or whatever else the
    compressor's `parts` are, a running mean over workers and messages of the mean square of a worker's block;
    and then one of each positive number that other options append to the message. Zero stands for not known:
    of the first block that is not zero, only the mean square is sent, as a logarithm. The mean finds any
    size whose square is a float32, within a hundred messages at worst. What is smaller waits in the residual
    until it is not; a block whose squares overflow, from elements of about 1e18 on, counts as not finite.

    Raises:
        ValueError: in `update`, for more than 127 workers.
    """

    def __init__(self, axis_name: AxisName, compressor: Compressor, numbers: int):
        self._axis_name, self._compressor, self._numbers = axis_name, compressor, numbers

    def init(self, params: PyTree) -> dict[str, PyTree]:
        return {'wire_squares': jnp.zeros(len(self._compressor.parts(params)) + self._numbers, jnp.float32)}

    def round(self, block: jax.Array, step: Step) -> jax.Array:
        """The nearest integers times the units."""
        units = self._units(step)
        return jnp.where(jnp.isfinite(block), self._counts(block, units) * units, jnp.nan)

    def pack(self, message: jax.Array, step: Step) -> jax.Array:
        """The integers, the reports, and an element that is not zero if the block is not finite."""
        rounded, numbers = jnp.split(message, [step.rest.size])
        parts = self._compressor.split(rounded + step.rest, step.pending)
        squares = [jnp.vdot(part, part)[None] / max(1, part.size) for part in parts]
        own = lax.optimization_barrier(concatenate([*squares, numbers]))
        known = step.before.extra['wire_squares']
        place = (jnp.log2(own) - _LOW) / (_HIGH - _LOW)
        # Only what is zero is reported as zero: from the least report on, the unit shrinks to what is there.
        place = jnp.where(own > 0, jnp.maximum(place, 1 / _largest_report(self._levels)), 0)
        report = jnp.where(known > 0, own / jnp.where(known > 0, known, 1) / _LARGEST, place)
        counts = self._counts(rounded, self._units(step))
        broken = jnp.any(~jnp.isfinite(own))[None]
        packed = [counts, _digits(jnp.where(broken, 0, report), self._levels), broken]
        return jnp.concatenate([x.astype(jnp.int8) for x in packed])

    def unpack(self, mean: jax.Array, step: Step) -> tuple[jax.Array, Step]:
        known, workers = step.before.extra['wire_squares'], num_workers(self._axis_name)
        size = sum(part.size for part in self._compressor.parts(step.pending))
        # XLA may divide a sum by K as a product with a rounded 1 / K: the sum itself is an integer again.
        sums = jnp.round(mean.astype(jnp.float32) * workers)
        counts, digits, broken = jnp.split(sums, [size, mean.size - 1])
        counts, report = counts / workers, _fractions(digits, self._levels, workers)
        first = jnp.where(report > 0, jnp.exp2(_LOW + (_HIGH - _LOW) * report), 0)
        now = jnp.where(known > 0, _LARGEST * report * known, first)
        running = jnp.where(known > 0, _MEMORY * known + (1 - _MEMORY) * now, now)
        numbers = now[known.size - self._numbers :]
        mean = concatenate([counts * self._units(step), numbers])
        step = step.keep(wire_squares=step.shards.mean(running))
        return jnp.where(broken > 0, jnp.nan, mean), step

    @property
    def _levels(self) -> int:
        return check_levels(num_workers(self._axis_name))

    def _units(self, step: Step) -> jax.Array:
        """What an integer counts at each place of the block: float32 [B], zero where it is not known."""
        units = jnp.sqrt(step.before.extra['wire_squares']) * (loading(self._levels) / self._levels)
        parts = self._compressor.parts(step.pending)
        # In memory, or XLA for GPUs would compile all parts again into every kernel that reads one of them.
        return lax.optimization_barrier(
            concatenate([jnp.full(part.size, units[i]) for i, part in enumerate(parts)])
        )

    def _counts(self, block: jax.Array, units: jax.Array) -> jax.Array:
        """The block in units, rounded and clipped, as float32."""
        return jnp.clip(jnp.round(block / jnp.where(units > 0, units, jnp.inf)), -self._levels, self._levels)


def check_levels(workers: int) -> int:
    """L, the largest integer that one of K workers may send.

    Raises:
        ValueError: if there is none.

    >>> check_levels(8)
    15
    """
    if workers > 127:
        raise ValueError(
            "wire_dtype='int8' adds the integers of all workers in 8 bits, which hold those of 127 at most, "
            f'but there are {workers} workers. Use bfloat16.'
        )
    return 127 // workers


def loading(levels: int) -> float:
    """The largest multiple of the unit over the rms, so that the error of a Gaussian block is least.

    A fit to the best uniform quantisers of 3 to 255 steps (Max, 1960), within 1 %.

    >>> round(loading(1), 2), round(loading(15), 2)
    (1.24, 2.9)
    """
    return 1.72 * math.sqrt(math.log2(2 * levels + 1)) - 0.93


def _num_digits(levels: int) -> int:
    return math.ceil(_BITS / math.log2(2 * levels + 1))


def _largest_report(levels: int) -> int:
    return (2 * levels + 1) ** _num_digits(levels) - 1


def _digits(fractions: jax.Array, levels: int) -> jax.Array:
    """Numbers [n], clipped to [0, 1], as digits in [-levels, levels], lowest first: float32 [digits · n]."""
    base, count = 2 * levels + 1, _num_digits(levels)
    whole = jnp.round(jnp.clip(fractions, 0, 1) * _largest_report(levels)).astype(jnp.int32)
    return jnp.concatenate([whole // base**i % base - levels for i in range(count)]).astype(jnp.float32)


def _fractions(digits: jax.Array, levels: int, workers: int) -> jax.Array:
    """Undoes `_digits`, of the sum over workers, to their mean: float32 [n], 0 only where all are."""
    base, count = 2 * levels + 1, _num_digits(levels)
    places = jnp.array([base**i for i in range(count)], jnp.int32)
    whole = places @ (digits.astype(jnp.int32).reshape(count, -1) + levels * workers)
    return whole.astype(jnp.float32) / (workers * _largest_report(levels))
