"""What a run prints: a description at the start, a progress bar, a table at the end."""

import time
from collections.abc import Iterable, Mapping
from typing import Any

import rich.console
import rich.filesize
import rich.progress
import rich.table

from def_jax.trainer.experiment import Experiment
from def_jax.trainer.tasks.base import Measure

__all__ = ['Progress', 'describe', 'evaluation_line', 'point_name', 'say', 'show_result', 'table_of_points']

_SECONDS_PER_LINE = 30


def describe(console: rich.console.Console, experiment: Experiment) -> None:
    """Prints devices, workers, parameters and what a step sends compared with dense SGD."""
    config, method, sent = experiment.config, experiment.method, experiment.communication
    device, devices = experiment.workers.devices[0], len(experiment.workers.devices)
    kind = 'fake CPU' if config.fake_devices else f'{device.device_kind} ({device.platform})'
    together = max(config.shards_per_worker, config.inside)
    each = f' of {together} devices each' if together > 1 else ''
    ratio = f'{"compression" if method.in_bytes else "ratio"} {config.ratio:g}'
    options, usual = (config.order, config.allocation, config.bits), ('random', 'proportional', 32)
    unusual = [f'{x} bits' if x == config.bits else x for x in options if x not in usual]
    blocks = ', '.join([ratio, *unusual])
    settings = method.options if method.link else ()
    own = ', '.join(f'{key} {str(config[key]).removesuffix(".0")}' for key in settings if config[key])
    point = f'{own or blocks}, λ={config.detach if method.detach is None else method.detach}'
    how = {'dense': 'dense', 'ef21': blocks, 'error_feedback': point, 'baseline': own}[method.kind]
    evaluated = ' and '.join(f'{len(split):,} {name}' for name, split in experiment.evaluated.items())
    epochs = f'{experiment.num_epochs:{_decimals(experiment.num_epochs)}}'
    unused = '; num_steps is set, so num_epochs has no effect' if config.num_steps else ''
    lines = {
        'method': f'{experiment.title} ({how})' if how else experiment.title,
        'workers': f'{config.num_workers}{each} on {devices} {kind} device(s), batch {config.batch_size}',
        'model': f'{config.model}, {sent.num_params:,} parameters',
        'data': f'{config.dataset}, {len(experiment.dataset.train):,} training and {evaluated} examples',
        'steps': f'{experiment.num_steps:,} in {epochs} epochs{unused}',
        'sent per step': f'{round(sent.elements_per_step):,} elements, {_size(sent.bytes_per_step)}, dense '
        f'{_size(sent.dense_bytes_per_step)} per worker; true ratio {sent.true_ratio:.1f}',
    }
    if method.kind != 'dense':
        lines['visits per block'] = f'{experiment.num_steps / sent.true_ratio:,.1f} (steps / true ratio)'
    for name, text in lines.items():
        say(console, f'[bold]{name + ":":<18}[/] {text}')


def say(console: rich.console.Console, line: str, **options: Any) -> None:
    """Prints a line as it is: not wrapped, and without colours of numbers."""
    console.print(line, highlight=False, soft_wrap=True, **options)


def point_name(point: str, answers: Mapping[str, str]) -> str:
    """A point's name in tables and plots: what it is, and which method outputs it."""
    names = {'x': 'x', 'y': 'y = x + mean residual', 'own': "x + r_k, each worker's own"}
    return names[point] + (f' ({answers[point]})' if point in answers else '')


def evaluation_line(measure: Measure, record: dict[str, Any], position: dict[str, Any]) -> str:
    """What is shown of an evaluation."""
    figures = '  '.join(
        f'{point} {measure.text(record[measure.key(point)])}'
        for point in ('x', 'y', 'own')
        if measure.key(point) in record
    )
    return (
        f'epoch {position["epoch"]:6.1f}  step {record["step"]:7,}  {measure.title}  {figures}  '
        f'{_size(1e6 * position["megabytes_sent"])} sent  {position["seconds"]:.0f} s'
    )


class Progress:
    """A progress bar on a terminal; elsewhere an occasional line, to keep logs short."""

    def __init__(
        self, console: rich.console.Console, start: int, num_steps: int, num_epochs: float, unit: str
    ):
        self._console = console
        self._bar = rich.progress.Progress(
            'epoch {task.fields[epoch]}',
            rich.progress.BarColumn(None),
            rich.progress.MofNCompleteColumn(),
            '{task.fields[figures]}',
            rich.progress.TimeRemainingColumn(compact=True),
            console=console,
            disable=not console.is_terminal,
        )
        self._steps, self._unit, self._decimals = num_steps, unit, _decimals(num_epochs)
        self._epochs = f'{num_epochs:{self._decimals}}'
        self._next_line = time.monotonic()
        self._task = self._bar.add_task('', total=num_steps, completed=start, epoch='', figures='')

    def __enter__(self) -> 'Progress':
        self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        self._bar.stop()

    def update(self, record: dict[str, Any] | None) -> None:
        """Moves the bar to the step of a training record, if there is one, and shows its figures."""
        if record is None:
            return
        per_second = record.get(f'{self._unit}_per_second')  # of no step, if the first was the only one
        speed = f'{per_second:,.0f} {self._unit}/s  ' if per_second else ''
        sent = f'{_size(1e6 * record["megabytes_sent"])} sent'
        loss = f'loss {record["loss"]:.3f}  ' if 'loss' in record else ''  # of no step, if all were skipped
        figures = f'{loss}lr {record["learning_rate"]:g}  {speed}{sent}'
        step, epoch = record['step'], f'{record["epoch"]:{self._decimals}}/{self._epochs}'
        if self._bar.disable and time.monotonic() > self._next_line:
            self.note(f'epoch {epoch}  step {step:,}/{self._steps:,}  {figures}')
        self._bar.update(self._task, completed=step, epoch=epoch, figures=figures)
        if skipped := record.get('skipped', 0):
            self.note(f'up to step {step:,}: {skipped} step(s) skipped, an update was not finite')

    def note(self, text: str) -> None:
        """Prints a permanent line above the bar."""
        self._next_line = time.monotonic() + _SECONDS_PER_LINE
        say(self._console, text)


def show_result(console: rich.console.Console, result: dict[str, Any], measure: Measure) -> None:
    """Prints the table at the end of a run: the metrics at each point, traffic and time."""
    metrics, communication = result['metrics'], result['communication']
    title = f'{result["title"]}, seed {result["config"]["seed"]}'
    console.print(table_of_points(title, metrics, result['points'], result['answers'], measure))
    if result.get('sample'):
        say(console, f'a sample:\n{result["sample"]}', markup=False)
    sent, dense = communication['megabytes_sent'], communication['megabytes_dense']
    factor = f' ({dense / sent:.1f} times)' if sent else ''  # a short run may send no message
    traffic = f'{_size(1e6 * sent)} sent per worker, dense SGD {_size(1e6 * dense)}{factor}'
    time_taken = f'{metrics["seconds"]:.1f} s for {metrics["steps"]:,} steps'
    loss = metrics['train_loss']
    say(console, f'training loss {"–" if loss is None else f"{loss:.4f}"}; {traffic}; {time_taken}')
    speed = result.get('speed', {})  # which earlier versions did not write
    if (alone := speed.get('exchange_seconds')) and (step := speed['step_seconds']):
        share = f'{100 * alone / step:.0f} % of a step of {1e3 * step:.3g} ms'
        size = _size(communication['bytes_per_step'])
        say(console, f'communication: {size} take {1e3 * alone:.3g} ms as an all-reduce alone, {share}')


def table_of_points(
    title: str,
    metrics: Mapping[str, Any],
    points: Iterable[str],
    answers: Mapping[str, str],
    measure: Measure,
) -> rich.table.Table:
    """The metrics of an evaluation, a row for each point."""
    table = rich.table.Table(title=title, title_justify='left')
    table.add_column()
    for heading in (measure.title, *measure.others(metrics, 'x')):
        table.add_column(heading, justify='right')
    for point in points:
        value, spread = metrics[measure.key(point)], metrics.get(f'{measure.key(point)}_std')
        figures = [f'{metric:.4f}' for metric in measure.others(metrics, point).values()]
        table.add_row(point_name(point, answers), measure.text(value, spread), *figures)
    return table


def _decimals(num_epochs: float) -> str:
    """The format of a number of epochs, with decimals where the run ends within one."""
    return '.0f' if num_epochs.is_integer() else '.2f'


def _size(count: float) -> str:
    return rich.filesize.decimal(round(count), precision=2)
