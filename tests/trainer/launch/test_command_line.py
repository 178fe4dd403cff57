"""train.py as a user runs it: exit codes, one line for every refusal, a run, a kill and a resumption."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from faults import processes

from configs import digits
from def_jax.trainer import metrics
from def_jax.trainer.checkpointing import workdir

ROOT = Path(__file__).resolve().parents[3]
DIGITS = '--config=configs/digits.py'
SHORT = [
    DIGITS,
    *('--config.num_workers=2', '--config.train_examples=256', '--config.batch_size=64', '--config.ratio=8'),
    *('--config.num_epochs=20', '--config.eval_every_epochs=1', '--config.log_every_steps=3'),
]


@pytest.fixture(scope='module')
def train(environment):
    def train(*flags):
        command = [sys.executable, 'train.py', *map(str, flags)]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)

    return train


def assert_refused(process, *words):
    """Exit code 2 and one line on standard error, with these words."""
    assert process.returncode == 2, process.stderr
    assert process.stderr.count('\n') == 1, process.stderr
    assert process.stderr.startswith('train.py: ') and 'Traceback' not in process.stderr
    for word in words:
        assert word in process.stderr


# --- Refusals ---


@pytest.mark.parametrize(
    ('flags', 'words'),
    [
        ([DIGITS, '--config.metod=def'], ['metod', 'Did you mean "method"']),
        ([DIGITS, '--wrkdir=elsewhere'], ['wrkdir', 'Did you mean: workdir']),
        ([DIGITS, '--config.num_workers=four'], ['--config.num_workers=four']),
        ([DIGITS, 'config.ratio=256'], ['config.ratio=256', '--config.key=value']),
        (['--config=configs/nothing.py'], ['configs/nothing.py', 'No such file']),
        ([], ['--config']),
        ([DIGITS, '--config.ratio=0'], ['config.ratio=0.0 must be a finite number >= 1']),
        (
            [DIGITS, '--config.fake_devices=False'],
            ['16 devices are needed', 'has 1 (cpu)', '--config.fake_devices=True'],
        ),
    ],
    ids=lambda value: ' '.join(value[1:]) if value and value[0] == DIGITS else None,
)
def test_what_cannot_be_run_is_refused_in_one_line(train, tmp_path, flags, words):
    assert_refused(train(*flags, f'--workdir={tmp_path / "run"}'), *words)
    assert os.listdir(tmp_path) == []


def test_the_folder_must_be_given(train):
    assert_refused(train(DIGITS), '--workdir')


def test_the_folder_of_another_run_is_refused_untouched(train, tmp_path):
    config = digits.get_config()
    config.method = 'sgd'
    run = workdir.claim(tmp_path / 'run', config)
    before = (run / 'config.json').read_bytes()
    assert_refused(train(DIGITS, f'--workdir={run}'), "method: 'sgd' there, 'def' here", str(run))
    assert os.listdir(run) == ['config.json']
    assert (run / 'config.json').read_bytes() == before


def test_help_is_no_error(train):
    process = train('--help')
    assert 'train.py' in process.stdout and '--workdir' in process.stdout
    assert 'Traceback' not in process.stderr


@pytest.mark.parametrize(
    ('program', 'arguments', 'words'),
    [
        ('sweep', [DIGITS, '--workdir=NEW'], ['sweep: --config is not a table', 'train.py']),
        (
            'sweep',
            ['--config=configs/tables/table1.py:digit', '--workdir=NEW'],
            ["'digit' must be a variant"],
        ),
        ('sweep', ['--config=configs/tables/table9.py', '--workdir=NEW'], ['configs/tables/table9.py']),
        (
            'sweep',
            [
                '--config=configs/tables/table1.py',
                '--config.base.ratio=0',
                '--config.seeds=(100,)',
                '--workdir=NEW',
            ],
            ['sweep: config.tuning_seeds=(100,) and config.seeds=(100,) must have no seed in common'],
        ),
        (
            'sweep',
            ['--config=configs/tables/table1.py', '--shard=2', '--workdir=NEW'],
            ['sweep: --shard=2 must be I/N'],
        ),
        (
            'sweep',
            [
                '--config=configs/tables/table1.py',
                '--config.base.workers_per_device=1',
                '--processes=2',
                '--workdir=NEW',
            ],
            ['sweep: 16 devices are needed', '--config.base.workers_per_device', 'has 1 (cpu)'],
        ),
        ('report', ['--workdir=NEW'], ['report: ', 'NEW contains no finished run']),
    ],
)
def test_sweep_and_report_refuse_in_one_line(environment, tmp_path, program, arguments, words):
    arguments = [argument.replace('NEW', str(tmp_path / 'NEW')) for argument in arguments]
    command = [sys.executable, '-m', f'paper.{program}', *arguments]
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert process.returncode == 2, process.stderr
    assert process.stderr.count('\n') == 1 and all(word in process.stderr for word in words), process.stderr
    assert list(tmp_path.iterdir()) == []


def test_one_process_of_a_sweep_reports_missing_data(environment, tmp_path):
    flags = ['--config=configs/tables/table2.py', '--config.base.fake_devices=True', '--processes=2']
    flags += [f'--config.base.data_dir={tmp_path / "data"}', f'--workdir={tmp_path / "sweep"}']
    command = [sys.executable, '-m', 'paper.sweep', *flags]
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert process.returncode == 2, process.stderr
    assert process.stderr.count("sweep: Data set 'imagenet2012' is not in") == 1
    assert '--config.base.data_dir, to DIR.' in process.stderr and list(tmp_path.iterdir()) == []


# --- Runs ---


@pytest.fixture(scope='module')
def finished(train, tmp_path_factory):
    """An uninterrupted run of DEF."""
    folder = tmp_path_factory.mktemp('finished') / 'run'
    return folder, train(*SHORT, f'--workdir={folder}')


@pytest.mark.slow
def test_a_run_ends_with_exit_code_0_and_its_result(finished):
    folder, process = finished
    assert process.returncode == 0, process.stderr
    assert 'Traceback' not in process.stderr
    result = json.loads((folder / 'result.json').read_text())
    assert (result['status'], result['config']['ratio']) == ('finished', 8)
    assert f'{result["communication"]["message_size"]:,} elements' in process.stdout
    for point in ('x', 'y'):
        assert f'{100 * result["metrics"][f"test_accuracy_{point}"]:.2f} %' in process.stdout
    assert f'written to {folder}' in process.stdout


@pytest.mark.slow
def test_the_loss_falls(finished):
    folder, _ = finished
    losses = [r['loss'] for r in metrics.read(folder / 'metrics.jsonl') if 'loss' in r]
    assert losses[-1] < 0.8 * losses[0]
    assert json.loads((folder / 'result.json').read_text())['metrics']['test_accuracy_x'] > 0.3


@pytest.mark.slow
def test_a_run_that_is_killed_and_stopped_ends_as_one_that_is_not(finished, environment, tmp_path):
    """The short form of tests/faults/kills.py; each start is a process, so this is determinism as well."""
    folder, since = tmp_path / 'run', time.time()
    process = processes.start(folder, SHORT, environment)
    assert processes.wait_for(process, lambda: processes.checkpoint_steps(folder))
    assert processes.wait_for(process, lambda: processes.is_writing(folder, since))
    assert processes.kill(process)
    assert not (folder / 'result.json').exists()

    before = processes.log_size(folder)
    process = processes.start(folder, SHORT, environment)
    assert processes.wait_for(process, lambda: processes.log_size(folder) != before)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=300) == 4
    assert 'train.py: stopped by SIGTERM after step' in (tmp_path / 'run.log').read_text()

    assert processes.start(folder, SHORT, environment).wait(timeout=300) == 0
    assert processes.differences(folder, finished[0]) == []
    assert len(processes.final_state(folder)) > 50


@pytest.mark.slow
def test_a_run_goes_on_when_nobody_reads_its_output(environment, tmp_path):
    """`train.py … | head -1`, where standard output is ASCII."""
    flags = [*SHORT, '--config.num_epochs=2', f'--workdir={tmp_path / "run"}']
    environment = environment | {'PYTHONIOENCODING': 'ascii'}
    command, pipe = [sys.executable, 'train.py', *flags], subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe) as process:
        assert b'?=0.3' in process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=300) == 0
        line = b'train.py: standard output can no longer be written to; continuing without it.\n'
        assert process.stderr.read() == line
    assert (tmp_path / 'run' / 'result.json').exists()


@pytest.mark.slow
def test_sgd_runs_and_keeps_what_it_compiled(environment, tmp_path):
    flags = [*SHORT, '--config.method=sgd', '--config.num_epochs=1', f'--workdir={tmp_path / "run"}']
    environment = {name: value for name, value in environment.items() if 'JAX_COMPILATION' not in name}
    command = [sys.executable, 'train.py', *flags]
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    assert list((tmp_path / 'run' / 'compilation_cache').iterdir())
    sent = json.loads((tmp_path / 'run' / 'result.json').read_text())['communication']
    assert sent['message_size'] == sent['num_params']


@pytest.mark.slow
def test_table_1_starts_on_cpu_cores_as_its_page_says(environment, tmp_path):
    """Its network on 16 fake devices, one run, on noise in the shape of CIFAR-10."""
    for split, count in (('train', 16), ('test', 2)):
        for number in range(count):
            path = tmp_path / 'images' / split / 'noise' / f'{number}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
            PIL.Image.fromarray(noise).save(path)
    flags = ['--config.base.fake_devices=True', '--config.base.workers_per_device=1']  # docs/paper_tables.md
    flags += [
        '--shard=1/16',
        '--config.seeds=(0,)',
        '--config.learning_rates=()',
        '--config.base.num_epochs=1',
    ]
    flags += ['--config.base.batch_size=16', '--config.base.dataset=image_folder']
    flags += [f'--config.base.dataset_options.folder={tmp_path / "images"}']
    command = [sys.executable, '-m', 'paper.sweep', '--config=configs/tables/table1.py', *flags]
    command += [f'--workdir={tmp_path / "sweep"}']
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert process.returncode == 0, process.stderr
    (result,) = (tmp_path / 'sweep').glob('*/result.json')
    assert json.loads(result.read_text())['environment']['num_devices'] == 16


@pytest.mark.slow
def test_processes_of_a_sweep_share_its_runs(environment, tmp_path):
    flags = ['--config=configs/tables/table1.py:digits', '--processes=2', '--shard=1/21']
    flags += ['--config.seeds=(0,)', '--config.learning_rates=()', f'--workdir={tmp_path / "sweep"}']
    flags += [
        '--config.base.num_epochs=1',
        '--config.base.train_examples=128',
        '--config.base.test_examples=10',
    ]
    command = [sys.executable, '-m', 'paper.sweep', *flags]
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    assert [line.split(': ')[0] for line in lines[:-1]] == [
        '1/1  method=sgd,ratio=1,learning_rate=0.1,seed=0'
    ]
    assert lines[-1].startswith('all runs of part 1/21 are done')
    assert len(json.loads((tmp_path / 'sweep' / 'sweep.json').read_text())['cells']) == 31
