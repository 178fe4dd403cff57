"""The program for two nodes: every method has a configuration, and the page says when each arrives."""

import itertools
import json

import pytest

from benchmarks import two_nodes
from configs.two_nodes import get_config
from def_jax.trainer.configuration.rules import check_config


@pytest.mark.parametrize(('variant', 'toy'), itertools.product(two_nodes.VARIANTS, [True, False]))
def test_every_method_has_a_valid_configuration(variant, toy):
    config = get_config()
    settings = {'variant': variant, 'seed': 0, 'bandwidth': '', 'steps': 100, 'toy': toy}
    config.update_from_flattened_dict(two_nodes._config(settings))
    check_config(config)


def test_a_step_takes_its_share_of_messages_that_are_sent_seldom():
    clock = [0.1 * step + 10 * (step // 32) for step in range(10, 181, 10)]
    assert two_nodes.step_seconds(clock) == pytest.approx(0.1 + 10 / 32)


def test_the_page_multiplies_the_steps_to_a_loss_by_the_time_of_a_step(tmp_path):
    dense, def_q = two_nodes.DENSE, 'DEF-Q, 1/64'
    curves = {dense: [[50, 2.04], [100, 2.0]], def_q: [[50, 2.3], [100, 2.01]]}
    with (tmp_path / 'runs.jsonl').open('w') as file:
        for (variant, curve), bandwidth in itertools.product(curves.items(), ['', '1gbit']):
            settings = {'variant': variant, 'seed': 0, 'bandwidth': bandwidth}
            seconds = {dense: 2.0, def_q: 0.5}[variant]
            run = {'settings': settings, 'curve': curve, 'step_seconds': seconds, 'commit': 'abc'}
            file.write(json.dumps(run) + '\n')
    two_nodes.write(tmp_path)
    rows = [line for line in (tmp_path / 'README.md').read_text().splitlines() if line.startswith('| ')]
    assert rows[2].split(' | ')[2:] == ['2000', '100', '200', '200 |']
    assert rows[3].split(' | ')[2:] == ['500', '50', '50', ' |']
