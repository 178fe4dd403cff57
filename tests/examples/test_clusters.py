"""Jobs for SLURM and Kubernetes: what they pass to the trainer, and what they do when it ends."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from def_jax.tools.place import Place, find
from def_jax.trainer.launch.exits import ExitCode

EXAMPLES = Path(__file__).parents[2] / 'examples'


@pytest.mark.parametrize('code', ExitCode)
def test_the_slurm_job_has_a_worker_a_node_and_is_requeued_when_it_was_stopped(tmp_path, code):
    """With stand-ins for srun and scontrol, which note how they are called."""
    for name, end in ('srun', code), ('scontrol', 0):
        (tmp_path / name).write_text(
            f'#!/bin/sh\necho {name} "$JAX_LOCAL_DEVICE_IDS" "$@" >> {tmp_path}/calls\nexit {end:d}\n'
        )
        (tmp_path / name).chmod(0o755)
    slurm = {'JOB_ID': '7', 'NNODES': '2', 'GPUS_ON_NODE': '4', 'CPUS_PER_TASK': '3'}
    environment = {f'SLURM_{name}': value for name, value in slurm.items()}
    environment['PATH'] = f'{tmp_path}:{os.environ["PATH"]}'
    command = ['bash', EXAMPLES / 'slurm.sh', '--config=mine.py', '--workdir=my run']
    assert subprocess.run(command, env=environment, check=False).returncode == code
    started, *others = (tmp_path / 'calls').read_text().splitlines()
    assert started == (
        'srun 0,1,2,3 --cpus-per-task=3 --kill-on-bad-exit=0 .venv/bin/python train.py --config=mine.py '
        '--workdir=my run --config.num_workers=2 --config.inside=4'
    )
    assert others == (['scontrol 0,1,2,3 requeue 7'] if code == ExitCode.STOPPED else [])


def test_the_slurm_job_has_a_process_a_node():
    options = dict(re.findall(r'#SBATCH --([\w-]+)=(\S+)', (EXAMPLES / 'slurm.sh').read_text()))
    assert (options['nodes'], options['ntasks-per-node'], options['gpus-per-node']) == ('2', '1', '8')
    assert options['signal'] == 'TERM@600'  # to the job's steps; B: would send it to the script alone


def test_the_kubernetes_job_fits_together():
    yaml = pytest.importorskip('yaml')
    service, job = yaml.safe_load_all((EXAMPLES / 'kubernetes.yaml').read_text())
    name, spec = job['metadata']['name'], job['spec']
    pod = spec['template']['spec']
    (container,) = pod['containers']
    assert (service['apiVersion'], service['kind'], job['apiVersion'], job['kind']) == (
        *('v1', 'Service'),
        *('batch/v1', 'Job'),
    )
    assert service['spec']['selector'] == {'job-name': name} and service['spec']['clusterIP'] == 'None'
    assert pod['subdomain'] == service['metadata']['name'] and spec['completionMode'] == 'Indexed'

    shell, program = container['command'], shlex.split(*container['args'])
    assert shell == ['sh', '-c'] and program[:3] == ['exec', 'python', 'train.py']
    flags = dict(flag.removeprefix('--').split('=', 1) for flag in program[3:])
    nodes = spec['completions']
    assert nodes == spec['parallelism'] == int(flags['config.num_workers'])
    assert int(flags['config.inside']) == container['resources']['limits']['nvidia.com/gpu']
    assert flags['process_id'] == '$JOB_COMPLETION_INDEX'
    address = f'{name}-0.{pod["subdomain"]}:1234'
    place = find(flags['coordinator_address'], int(flags['num_processes']), 0, {})
    assert place == Place(address, nodes, 0)
    mounted = {mount['name'] for mount in container['volumeMounts']}
    assert mounted == {volume['name'] for volume in pod['volumes']}

    fail, again, evicted = spec['podFailurePolicy']['rules']
    assert (fail['action'], again['action'], evicted['action']) == ('FailJob', 'Ignore', 'Ignore')
    ends = ExitCode.REFUSED, ExitCode.DIVERGED, ExitCode.REPLICAS_DIFFER
    assert tuple(fail['onExitCodes']['values']) == ends
    assert tuple(again['onExitCodes']['values']) == (ExitCode.STOPPED, ExitCode.PROCESS_LOST)
    assert {each['onExitCodes']['containerName'] for each in (fail, again)} == {container['name']}
