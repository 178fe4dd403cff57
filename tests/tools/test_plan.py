"""The program that plans a cluster: what it prints, and what it refuses."""

import dataclasses
import re

import pytest

from def_jax.tools.planner import Plan, comparison
from def_jax.tools.planner.devices import DEVICES
from def_jax.tools.planner.program import main

SLOW = Plan(params=25.6e6, step_time=0.12, bandwidth=10e9, workers=64, latency=0.0)
FLAGS = ['--params=25.6e6', '--step-time=0.12', '--workers=64', '--bandwidth=10gbit']


def test_the_command_line_and_both_spellings_of_a_flag(tmp_path, capsys):
    picture = tmp_path / 'plan.png'
    assert main([*FLAGS, '--num-steps=10', '--evaluate_every=5', f'--output={picture}']) == 0
    plan = dataclasses.replace(SLOW, latency=50e-6, num_steps=10, evaluate_every=5)
    output = capsys.readouterr().out
    assert (
        comparison.table(plan, comparison.compare(plan)) in output
        and 'travel while one gradient is' in output
    )
    assert picture.stat().st_size > 0


def test_the_command_line_of_nodes(capsys):
    assert main([*FLAGS, '--gpus-per-link=8', '--optimizer=sgd']) == 0
    output = capsys.readouterr().out
    plan = dataclasses.replace(SLOW, latency=50e-6, gpus_per_link=8)
    assert comparison.table(plan, comparison.compare(plan, optimizer='sgd')) in output
    assert re.search(r"optimizer = def_jax.def_sgd\(rate, \d+, 'workers', inside=8\)\n", output)
    assert 'Each has 8 GPUs. "Sent" is what leaves the link that they share.' in output


def test_one_machine_is_a_no(capsys):
    flags = ['--params=350M', '--step-time=0.5', '--bandwidth=200gbit', '--workers=1', '--gpus-per-link=8']
    assert main(flags) == 0
    printed = capsys.readouterr().out
    assert '**Nothing here pays within one machine**' in printed and '|' not in printed


def test_numbers_that_may_be_in_another_unit_and_workers_of_several_nodes(capsys):
    assert main([*FLAGS, '--step-time=250']) == 0
    assert '250 seconds, the unit of `--step-time`. If you meant milliseconds, pass 0.25.' in (
        capsys.readouterr().out
    )
    flags = ['--params=1.3B', '--workers=2', '--bandwidth=10gbit', '--step-time=0.5']
    assert main([*flags, '--gpus-per-link=32', '--fsdp']) == 0
    output = capsys.readouterr().out
    assert "FSDP over its 32 GPUs moves 7.56 GB over every node's link in a step, 0.6 s at 100" in output
    assert "DEF-Q's rows wait for theirs" in output
    assert main([*flags, '--gpus-per-link=8', '--fsdp', '--device=H100', '--in-flight']) == 0
    output = capsys.readouterr().out
    assert 'taken as free' not in output and 'rows wait' not in output


def test_a_link_that_leaves_a_site_is_a_no_first(capsys):
    flags = ['--params=300M', '--workers=5', '--step-time=3.5']
    assert main([*flags, '--bandwidth=50mbit', '--optimizer=adamw']) == 0
    printed = capsys.readouterr().out
    told, table = printed[: printed.index('\n\n')], printed[: printed.index('\n\n- Each')]
    assert told.startswith('**No, ') and 'not for home users' in told and told.endswith('sites of your own.')
    assert 'A link this slow mostly leaves a site: pass its `--latency`' in told
    assert '| one worker alone, the same batch | 0 | 17,500 | 0 |' in table
    assert 'times as fast as one worker alone, the same batch, which is faster' in printed
    assert 'To compare DEF-Q' not in printed  # one worker alone is faster
    assert main([*flags, '--bandwidth=10gbit', '--latency=0.03']) == 0
    printed = capsys.readouterr().out
    assert printed.startswith('**No, ') and 'A link this slow' not in printed


DEVICE = ['--params=1e6', '--workers=4', '--device=h100']


@pytest.mark.parametrize(
    ('flags', 'line'),
    [
        ([*FLAGS, '--bandwidth=fast'], "plan: bandwidth='fast' must be in bits per second"),
        *(  # no unit, or the wrong one
            ([*FLAGS, f'--{given}'], f'plan: --{given} has no unit. Did you mean --{meant}?')
            for given, meant in (
                ('bandwidth=10', 'bandwidth=10gbit or --bandwidth=10mbit'),
                ('memory=80', 'memory=80GB'),
                ('params=7', 'params=7M or --params=7B'),
            )
        ),
        ([*FLAGS, '--step-time=3s'], "plan: argument --step-time/--step_time: '3s' must be a number of sec"),
        ([*FLAGS, '--params=-7B'], "plan: params='-7B' must be a number such as '7B'"),
        ([*FLAGS, '--memory=7BB'], "plan: memory='7BB' must be a number such as"),
        ([*FLAGS, '--optimizer=adam'], "plan: optimizer='adam' must be 'sgd' (momentum SGD) or 'adamw' (Ada"),
        (
            [*DEVICE, '--device=3090'],
            "plan: device='3090' is unknown; it must be one of b200, h200, h100, a1",
        ),
        (
            [*FLAGS, '--dense-step=0.1'],
            'plan: --dense-step=0.1 is shorter than a step without communication, 0.12',
        ),
        *(  # hidden behind a step of 20 ms, of an all-reduce of 87 ms
            (
                [*FLAGS, '--step-time=0.02', flag],
                f'plan: {flag.partition("=")[0]} hides 43.5 ms of communication behind 20 ms of computation, '
                'which is impossible: the link is faster than --bandwidth says',
            )
            for flag in ('--overlap=0.5', '--dense-step=0.06347')
        ),
        ([*FLAGS, '--workers=4.5'], "plan: argument --workers: invalid int value: '4.5'"),
        ([*FLAGS, '--output=.'], "plan: output='.' is a folder"),
        ([*FLAGS, '--output=no/such/folder/x.png'], 'plan: [Errno 2] No such file or directory'),
        (FLAGS[:2], 'plan: the following arguments are required: --bandwidth (or --measure), --workers'),
        ([*DEVICE, '--device=h101', '--flops=1e12'], "plan: device='h101' is unknown"),
        ([*FLAGS, '--local-steps=0'], 'plan: local_steps=0 must be an integer in [1, '),
        ([*FLAGS, '--measure'], 'plan: --measure and --bandwidth exclude each other'),
        (['--measure', '--process-id=1'], 'plan: --coordinator_address and --num_processes must'),
        ([*FLAGS, '--process-id=1'], 'plan: --coordinator-address/--num-processes/--process-id has no'),
        ([*FLAGS, '--params=7X'], "plan: params='7X' must be a number such as '7B'"),
        (
            [*FLAGS, '--overlap=0.5', '--dense-step=0.2'],
            'plan: --dense-step and --overlap exclude each other',
        ),
        ([*FLAGS, '--utilisation=0.4'], 'plan: --utilisation has no effect without --flops, the operations'),
        ([*DEVICE, '--flops=1', '--utilisation=40'], 'plan: utilisation=40.0 must be a number in'),
        ([*FLAGS, '--flops=1'], 'plan: --flops has no effect without --device'),
        (
            DEVICE,
            'plan: the following arguments are required: --step-time (or --device, --flops and '
            '--utilisation, mostly 0.2 to 0.5), --bandwidth (or --measure)',
        ),
        ([*DEVICE, '--flops=1', '--step-time=1'], 'plan: --step-time and --flops exclude each other'),
        *(  # NVLink ends at the machine
            (
                [*DEVICE, '--flops=1', *more],
                'plan: the following arguments are required: --bandwidth (or --measure). The links of NVIDIA '
                'H100 SXM, 3600 Gbit/s, join the devices of one machine or TPU slice alone: pass '
                '--bandwidth=3600gbit only if nothing slower lies between workers',
            )
            for more in ([], ['--gpus-per-link=8'])
        ),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(tmp_path, monkeypatch, capsys, flags, line):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(flags)
    output = capsys.readouterr()
    assert end.value.code == 2 and output.err.startswith(line), output.err
    assert output.err.count('\n') == 1 and not output.out and not list(tmp_path.iterdir())


def test_a_device_bounds_the_step(capsys):
    """989.4 TFLOP/s; a small model is bound by its eight passes over memory."""
    flags = ['--device=h100', '--flops=9.894e12', '--params=85e6']
    assert main([*flags, '--workers=8', '--bandwidth=400gbit', '--latency=0.002']) == 0
    plan = Plan(params=85e6, step_time=0.01, bandwidth=400e9, workers=8, latency=0.002)
    output = capsys.readouterr().out
    assert comparison.table(plan, comparison.compare(plan)) in output
    assert 'A link passes 400 Gbit/s (`--bandwidth`) and takes 2 ms a message (`--latency`).\n' in output
    assert 'a bound, not a prediction' in output
    assert 'No advice without a measured `--step-time`' in output and 'Start with' not in output
    assert DEVICES['v5e'].step_time(1e9, 1e9) == pytest.approx(8 * 4e9 / 819e9)
    assert main([*flags, '--workers=1']) == 0  # whose GPUs have a link that --device knows


def test_with_a_utilisation_the_device_is_an_estimate_and_gives_advice(capsys):
    flags = ['--device=a10', '--flops=6.25e12', '--params=25.6M', '--workers=4', '--bandwidth=10gbit']
    assert main([*flags, '--utilisation=0.2']) == 0
    output = capsys.readouterr().out
    assert 'At 20 % of its peak, NVIDIA A10 computes a step in 250 ms. ' in output
    assert re.search(r' from <https://\S+>\.\n\n', output)
    assert 'Start with' in output
    assert main([*flags, '--utilisation=0.2', '--params=1B']) == 0
    assert 'Nothing fits' not in capsys.readouterr().out
    assert main([*flags, '--utilisation=0.2', '--params=2B']) == 0
    assert 'Nothing fits: parameters, gradients and state alone take 32 GB' in capsys.readouterr().out


def test_a_dense_step_says_what_is_hidden(capsys):
    """Half of an all-reduce of 80.6 ms; and a step that takes longer than all of it."""
    flags = ['--params=25.6M', '--step-time=0.12', '--workers=64', '--bandwidth=10gbit', '--latency=0']
    plan = SLOW
    assert plan.hidden(0.12 + plan.all_reduce(plan.params, 2) / 2) == pytest.approx(0.5)
    assert (plan.hidden(0.1), plan.hidden(9), dataclasses.replace(plan, workers=1).hidden(1)) == (1, 0, 0)
    assert main([*flags, '--dense-step=0.1603']) == 0
    assert 'Your dense step of 160 ms hides 50 % of the all-reduce.\n' in capsys.readouterr().out
    assert main([*flags, '--dense-step=0.4']) == 0
    output = capsys.readouterr().out
    assert 'Without overlap it should take 201 ms: the line is slower' in output
    assert '`--dense-step` measures it' not in output  # since it just did: nothing hides


def test_a_dense_step_of_nodes_may_be_of_either_layout(capsys):
    flags = ['--params=7B', '--workers=16', '--gpus-per-link=8', '--fsdp', '--bandwidth=100gbit']
    assert main([*flags, '--step-time=3.285', '--dense-step=4.962']) == 0
    output = capsys.readouterr().out
    assert (
        'hides 20 % of the all-reduce if it was laid out as the first row, dense, bfloat16, FSDP ins'
        in output
    )
    assert 'If as the second, dense, bfloat16, FSDP over all, pass `--overlap=0.5` instead.' in output
    flags[flags.index('--params=7B')] = '--params=1.3B'
    assert main([*flags, '--step-time=0.25', '--dense-step=0.4']) == 0
    assert 'FSDP inside: the second, dense, bfloat16, FSDP over all, takes longer.' in capsys.readouterr().out
