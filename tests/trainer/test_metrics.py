"""metrics.jsonl and TensorBoard: complete up to each checkpoint, and a full disk is an error."""

import json

import pytest
import training_fixtures as fixtures
from tensorboardX.proto import event_pb2

from def_jax.trainer import metrics
from def_jax.trainer.metrics import MetricLog

STEPS = (3, 5, 6, 9)


def record(step):
    return {'step': step, 'loss': 1 / (step + 3)}


@pytest.fixture
def log(tmp_path):
    """Makes logs of a folder, and closes them at the end."""
    logs = []

    def make(resume_step=0, seal=None, **options):
        logs.append(MetricLog(tmp_path, resume_step, seal, **options))
        return logs[-1]

    yield make
    for made in logs:
        made.close()


@pytest.fixture
def seals(tmp_path, log):
    """A folder with records, and the seal of each step's checkpoint."""
    first, made = log(), {}
    for step in STEPS:
        first.write(record(step))
        made[step] = first.seal()
    first.close()
    return made


def steps_of(folder):
    return [r['step'] for r in metrics.read(folder / 'metrics.jsonl')]


def test_the_evaluation_of_a_checkpoint_follows_its_seal_and_is_kept(tmp_path, log, seals):
    path = tmp_path / 'metrics.jsonl'
    evaluation = json.dumps({'step': 9, 'accuracy': 0.5}).encode() + b'\n'
    for rest, kept in (
        (evaluation, 1),
        (2 * evaluation, 2),
        (evaluation[:-1], 0),
        (evaluation.replace(b'9', b'8'), 0),
    ):
        path.write_bytes(path.read_bytes()[: seals[9].size] + rest + b'{"step": 12}\n')
        resumed = log(9, seals[9], evaluated=['accuracy'])
        assert resumed.is_evaluated(9) == bool(kept)
        assert steps_of(tmp_path) == [*STEPS, *[9] * kept]
        resumed.close()


def test_every_record_is_a_line_on_disk_that_keeps_every_digit(tmp_path, log, seals):
    lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
    assert [json.loads(line) for line in lines] == [record(step) for step in STEPS]
    resumed = log(6, seals[6])
    resumed.write({'step': 8, 'test_loss': 2.0})
    assert metrics.read(tmp_path / 'metrics.jsonl')[-1] == {'step': 8, 'test_loss': 2.0}  # at once
    assert (resumed.last('loss'), resumed.last('test_loss'), resumed.last('seconds')) == (1 / 9, 2.0, 0.0)
    assert log().records == [] == steps_of(tmp_path)  # a run that starts forgets everything


DAMAGES = [
    (lambda text: None, r'cannot be read \(No such file or directory\)'),
    (lambda text: text[:-5], r'ends after \d+ of \d+ bytes'),
    (lambda text: text.replace(b'0.125', b'0.925'), 'was changed'),
]


@pytest.mark.parametrize(('damage', 'reason'), DAMAGES)
def test_a_sealed_record_cannot_be_lost_unseen(tmp_path, log, seals, damage, reason):
    path = tmp_path / 'metrics.jsonl'
    before = damage(path.read_bytes())
    path.unlink() if before is None else path.write_bytes(before)
    with fixtures.refused(f'metrics.jsonl {reason}, so records before .* step 9'):
        log(9, seals[9])
    assert (path.read_bytes() if path.exists() else None) == before


def test_what_is_no_record_is_dropped(tmp_path, log, seals):
    path = tmp_path / 'metrics.jsonl'
    junk = [b'', b'{', b'{"step": 12, "loss": 0.5', b'\0\0', b'5', b'{}', b'[]', b'\xff"', b'[' * 100_000]
    path.write_bytes(path.read_bytes() + b'\n'.join([*junk, json.dumps(record(12)).encode()]))
    assert steps_of(tmp_path) == [*STEPS, 12]
    log(9, seals[9]).write(record(20))
    assert steps_of(tmp_path) == [*STEPS, 20]


def events_of(path):
    """The events of a file of TFRecords: length, its checksum, data, its checksum."""
    content, events = path.read_bytes(), []
    while content:
        size = int.from_bytes(content[:8], 'little')
        events.append(event_pb2.Event.FromString(content[12 : 12 + size]))
        content = content[16 + size :]
    return events


def test_tensorboard_gets_each_figure_and_hides_what_a_resumed_run_repeats(tmp_path, log, seals, monkeypatch):
    monkeypatch.setattr(metrics.time, 'time', lambda: 1.6e9)  # the clock was set back, and files go by name
    resumed = log(5, seals[5])
    resumed.write({'step': 6, 'loss': 0.5, 'pending': [{}]})
    resumed.close()
    first, second = sorted((tmp_path / 'tensorboard').iterdir())
    assert [e.step for e in events_of(first) if e.summary.value] == list(STEPS)
    _, start, event = events_of(second)
    assert (start.session_log.status, start.step) == (event_pb2.SessionLog.START, 6)
    (value,) = event.summary.value
    assert (event.step, value.tag, value.simple_value) == (6, 'loss', 0.5)


def test_a_disk_that_fills_is_an_error_and_closing_waits_for_nobody(tmp_path, log, small_files):
    full = log()
    with small_files(2000):
        with fixtures.refused(r'metrics\.jsonl or the tensorboard .* cannot be written .*free some space'):
            for step in range(1, 1000):
                full.write(record(step))
                full.seal()
        full.close()
    assert len(steps_of(tmp_path)) > 5
