"""What a configuration describes: task, data set, optimizer, workers and number of steps."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
import optax

from def_jax import message_size
from def_jax.baselines import methods
from def_jax.traffic import Message, Traffic, traced, traffic_of
from def_jax.traffic.drift import check_agreement
from def_jax.trainer.configuration import parts
from def_jax.trainer.configuration.rules import checked, of_keys
from def_jax.trainer.data import order
from def_jax.trainer.data.dataset import Dataset, Split
from def_jax.trainer.state import TrainState, per_worker
from def_jax.trainer.steps import Steps
from def_jax.trainer.tasks.base import Measure, Task
from def_jax.trainer.workers import AXIS, Workers, make_workers

__all__ = ['Communication', 'Experiment', 'build']

_EXAMPLES, _UNITS = 100, 8192  # of an evaluation, on a device
_TITLES = {'adamw': 'AdamW', 'lion': 'Lion', 'muon': 'Muon'}


@dataclasses.dataclass(frozen=True)
class Communication:
    """What one worker passes to collectives in training, without evaluations; dense vectors are float32.

    A message that is reduced by one collective and gathered by another counts once. What each device of a
    worker holds whole counts once per device.
    """

    num_params: int  # d
    message_size: int  # B, in elements
    message_bytes: int
    dense_steps: int = 0  # how many steps at the start send d instead of B
    always: int = 0  # elements that every step sends besides, float32
    average_every: int = 0  # steps between additional messages of d; 0 for never
    every: int = 1  # steps per message
    overlap: bool = False  # a message waits for the next step; the first one sends zeros

    @property
    def true_ratio(self) -> float:
        """d over the mean elements of a step; below the nominal ratio where tensors are small."""
        return self.num_params / self.elements_per_step

    @property
    def elements_per_step(self) -> float:
        """On average over steps with and without a message."""
        return self.message_size / self.every + self._float32_per_step

    @property
    def bytes_per_step(self) -> int:
        return round(self.message_bytes / self.every + 4 * self._float32_per_step)

    @property
    def _float32_per_step(self) -> float:
        """Elements besides the message."""
        return self.always + (self.num_params / self.average_every if self.average_every else 0)

    @property
    def dense_bytes_per_step(self) -> int:
        return 4 * self.num_params

    def megabytes_sent(self, steps: int, records: Sequence[Mapping[str, Any]] = ()) -> float:
        """Megabytes that a worker has sent after `steps` steps.

        Up to the last of `records`, as that says: other workers, with other messages, may have trained.
        """
        for record in reversed(records):
            if 'megabytes_sent' in record:
                since = self.megabytes_sent(steps) - self.megabytes_sent(record['step'])
                return round(record['megabytes_sent'] + since, 6)  # whole bytes
        messages = (steps + (self.every - 1) * self.overlap) // self.every
        sent = messages * self.message_bytes + steps * 4 * self.always
        sent += min(steps, self.dense_steps) * (self.dense_bytes_per_step - self.message_bytes)
        if self.average_every:
            sent += steps // self.average_every * self.dense_bytes_per_step
        return sent / 1e6


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A run, ready to start. Immutable: the state lives in `TrainState`."""

    config: ml_collections.FrozenConfigDict
    method: methods.Method
    dataset: Dataset
    task: Task
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation
    workers: Workers
    steps_per_epoch: int
    num_steps: int

    @property
    def title(self) -> str:
        """The method's, with the optimizer unless that is SGD: 'DEF', 'DEF with AdamW', 'dense AdamW'."""
        name, method = self.config.optimizer, self.method.title
        if name == 'sgd':
            return method
        optimizer = _TITLES.get(name, name.rpartition(':')[2])
        return f'dense {optimizer}' if self.method.kind == 'dense' else f'{method} with {optimizer}'

    @property
    def answers(self) -> dict[methods.Point, str]:
        """By point, the titles of the methods that this run serves."""
        if self.method.kind == 'dense':
            return {'x': self.title}
        return self.method.answers(self.config.average_every) or {'x': self.title}

    @property
    def steps_per_evaluation(self) -> int:
        """After how many steps x and y are evaluated and a checkpoint is written."""
        return self.config.eval_every_steps or self.config.eval_every_epochs * self.steps_per_epoch

    @property
    def num_epochs(self) -> float:
        """The run's length in epochs, which need not be whole."""
        return self.num_steps / self.steps_per_epoch

    def train_batches(self, first_step: int) -> Iterator[dict[str, np.ndarray]]:
        """This process's batches from `first_step` on, with leading axes `workers.local_shape`; endless."""
        options = {'seed': self.config.seed, 'first_step': first_step}
        return self._by_worker(self.dataset.train.train_batches, self.config.batch_size, **options)

    @property
    def evaluated(self) -> dict[str, Split]:
        """The splits that are evaluated, by name; the first is that of `measure`."""
        splits = {self.config.evaluate_on: self.dataset.evaluated(self.config.evaluate_on)}
        if count := self.config.evaluate_train_examples:
            splits['train'] = self.dataset.train.part(0, count)
        return splits

    @property
    def examples_per_device(self) -> int:
        """Examples of a test batch on a device: of long sequences, no more than a gradient takes."""
        trained = self.config.batch_size // (len(self.workers.devices) * self.config.accumulate)
        return min(_EXAMPLES, max(1, trained, _UNITS // self.dataset.units_per_example))

    @property
    def places(self) -> int:
        """How many parts of a batch there are: workers, or devices of which several make up one."""
        return self.config.num_workers * self.config.inside

    def test_batches(self, split: Split) -> Iterator[dict[str, np.ndarray]]:
        """One pass over a split, like `train_batches`, with a mask."""
        workers = self.places
        examples = -(-self.examples_per_device * len(self.workers.devices) // workers)
        return self._by_worker(split.test_batches, examples * workers)

    def _by_worker(
        self, batches: Callable[..., Iterator[dict]], batch_size: int, **options: Any
    ) -> Iterator[dict[str, np.ndarray]]:
        virtual, shape = self.config.workers_per_device, self.workers.local_shape
        options |= {'batch_size': batch_size, 'num_workers': self.places}
        workers = [row * virtual + i for row in self.workers.rows for i in range(virtual)]
        for batch in batches(workers=workers, **options):
            yield {name: x.reshape(*shape, *x.shape[1:]) for name, x in batch.items()}

    @property
    def measure(self) -> Measure:
        """What the run's points are compared by."""
        return Measure(self.config.evaluate_on, self.task.headline)

    @functools.cached_property
    def abstract_variables(self) -> Any:
        """Shapes and dtypes of the task's variables; compiles nothing."""
        return jax.eval_shape(lambda: self.task.init(jax.random.key(0)))

    @functools.cached_property
    def is_per_worker(self) -> TrainState:
        """Which parts of the state are per-worker, see `per_worker`."""
        return per_worker(self.optimizer, self.abstract_variables)

    @functools.cached_property
    def steps(self) -> Steps:
        """What the workers compute."""
        return Steps(
            self.task,
            self.optimizer,
            self.workers,
            self.is_per_worker,
            seed=self.config.seed,
            points=self.method.points,
            detaches=self.method.kind == 'error_feedback',
            inside=self.config.inside,
            accumulate=self.config.accumulate,
            skips=self.config.skip_nonfinite,
        )

    @functools.cached_property
    def communication(self) -> Communication:
        """What training sends; traces one update, so an optimizer that cannot make one raises."""
        halves = any(message.operation == 'all-to-all' for message in self._traffic.messages)

        def passed(messages: Sequence[Message]) -> int:
            return sum(m.bytes for m in messages if not (halves and m.operation == 'all-gather'))

        return self._communication(passed)

    @functools.cached_property
    def on_the_wire(self) -> Communication:
        """The same in what passes over a worker's link: bytes of the all-reduce that passes as many."""
        workers = self.config.num_workers
        return self._communication(lambda messages: round(sum(m.as_all_reduce(workers) for m in messages)))

    def exchange_seconds(self) -> float | None:
        """Seconds of an all-reduce of as many bytes as a step passes, alone; all processes must call it.

        None where that would be of no network, or of another than the message's.
        """
        config = self.config
        local = jax.process_count() == 1 and self.workers.devices[0].platform == 'cpu'
        if local or config.elastic or config.shards_per_worker > 1 or config.num_workers == 1:
            return None
        return self.steps.exchange_seconds(self.on_the_wire.bytes_per_step)

    def check_agreement(self) -> None:
        """Raises ValueError if an update would differ between workers; it is only traced."""
        own = self.is_per_worker.opt_state
        given = self.config.num_workers > 1 and own  # the devices of a single worker start from one state
        if self.places > 1:
            check_agreement(*self._update, (True, given, False), (False, own), [AXIS])

    @functools.cached_property
    def _update(self) -> tuple[Any, tuple, tuple]:
        # Along a second axis are virtual workers, which send nothing to each other.
        part = self.workers.part(self.abstract_variables['params'])
        return traced(self.optimizer, part, self.workers.axis_name, {AXIS: self.places})

    @functools.cached_property
    def _traffic(self) -> Traffic:
        return traffic_of(self._update[0], AXIS, {AXIS: self.places})

    def _communication(self, passed: Callable[[Sequence[Message]], int]) -> Communication:
        config, params, found = self.config, self.abstract_variables['params'], self._traffic
        part, devices = self.workers.part(params), self.workers.devices_per_row
        senders = devices * config.inside  # each its part of what a worker's devices hold whole
        # Averages, every P steps, and dense first steps lie in branches that not every step takes; they are
        # counted apart. With local steps the message itself does.
        always = passed(found.always)
        branches = [[passed(sent) for sent in branch] for branch in found.branches]
        message = sum(map(max, branches)) if config.every > 1 else always + sum(map(min, branches))
        if config.num_workers > 1 and not found.messages:
            what = f'config.method={config.method!r} sends nothing, so workers would drift apart'
            raise ValueError(f'{what}. Average over its axis_name, e.g. with jax.lax.pmean.')
        num_params = sum(leaf.size for leaf in jax.tree.leaves(params))
        # A method of one worker has nobody to send to: what it applies at each step is everything.
        message = senders * message or 4 * num_params
        blocks = self.method.link is None and self.method.compressor(
            ratio=config.ratio, bits=config.bits, order=config.order, allocation=config.allocation
        )
        return Communication(
            num_params=num_params,
            message_size=devices * message_size(blocks, part) if blocks else message // 4,
            message_bytes=message,
            dense_steps=self.method.dense_steps(config),
            always=senders * always // 4 if config.every > 1 else 0,
            average_every=config.average_every,
            every=config.every,
            overlap=config.overlap,
        )


def build(config: ml_collections.ConfigDict) -> Experiment:
    """Checks the configuration, finds the devices, loads the data and builds the optimizer."""
    with of_keys():
        config = checked(config)
    workers = make_workers(config)

    def learning_rate(step):
        return schedule(step)  # made last, since its length is that of the data

    with of_keys():
        optimizer = parts.make_optimizer(config, learning_rate, workers.axis_name)
        dataset = parts.make_dataset(config)
        steps_per_epoch = order.steps_per_epoch(len(dataset.train), config.batch_size)
        task = parts.make_task(config, dataset)
        num_steps = config.num_steps or steps_per_epoch * config.num_epochs
        if num_steps >= 2**31:  # they are counted in 32 bits
            given = f'num_epochs={config.num_epochs} or num_steps={config.num_steps}'
            raise ValueError(f'{given} gives {num_steps} steps, but there must be fewer than 2**31.')
        schedule = parts.make_schedule(config, num_steps)
    return Experiment(
        config=ml_collections.FrozenConfigDict(config),
        method=parts.find_method(config),
        dataset=dataset,
        task=task,
        schedule=schedule,
        optimizer=optimizer,
        workers=workers,
        steps_per_epoch=steps_per_epoch,
        num_steps=num_steps,
    )
