"""docs/decide.md and docs/plans.md say what the planner does, number for number."""

import re
from pathlib import Path

import pytest
from figures import has

from def_jax.tools.planner import Plan, advice, comparison, program
from def_jax.tools.planner.program import main

DOCS = Path(__file__).parents[2] / 'docs'


def test_the_page_that_decides_says_what_the_planner_does():
    decide, diloco = DOCS / 'decide.md', DOCS / 'how_to/from_diloco.md'
    trained, (least, *_) = advice.TRAINED, comparison.COMPRESSIONS
    seen = trained['DEF-Q'] / 1e6, advice.DEF_Q_ITSELF['adamw'] / 1e6
    billions = {family: params / 1e9 for family, params in trained.items()}
    limit = float(f'{advice.REACH * trained["DEF-Q"]:.1g}') / 1e6
    known = (billions[name] for name in ('DiLoCo', 'Streaming DiLoCo', 'PowerSGD'))
    assert has(decide, limit, *known, *seen, least)
    assert has(decide, comparison.KNOWN, least, advice.CAREFUL / 1e6)  # the row of transformers
    assert has(decide, advice.CAREFUL / 1e6, least)
    assert has(decide, 1 / (advice.WORTH - 1), advice.WORTH) and has(decide, advice.WORTH)
    assert has(diloco, limit, billions['DiLoCo'], *seen)
    assert advice.NEAR == 0.9  # "within a tenth"


def test_the_tables_of_the_page_that_decides():
    decide, diloco = DOCS / 'decide.md', DOCS / 'how_to/from_diloco.md'
    for gbits in (1, 10, 25, 100, 400):
        seconds = Plan(1e9, 1, gbits * 1e9, workers=16, latency=0.0).all_reduce(1e9, 2)
        assert has(decide, f'{gbits} Gbit/s', seconds, seconds / (advice.WORTH - 1))
    for family, copies in comparison.COPIES.items():
        assert has(decide, f'{family} | {4 * copies["sgd"]} | {4 * copies["adamw"]}')
    nodes = Plan(7e9, 3, 1e11, workers=16, gpus_per_link=8, fsdp=True)
    inside, over_all, def_q, *_ = (each.memory / 1e9 for each in comparison.compare(nodes))
    assert has(decide, '7 B', over_all, inside, def_q)
    dense = comparison.COPIES['dense']['adamw']
    more = {family: 4 * (copies['adamw'] - dense) for family, copies in comparison.COPIES.items()}
    assert has(diloco, f'{more["DiLoCo"]} bytes a parameter', more['DEF-Q'])
    moved = program._inside(Plan(1.3e9, 1, 25e9, workers=2, gpus_per_link=32, fsdp=True))
    figures = re.search('moves (.*) GB over every node.s link in a step, (.*) Gbit/s', moved)
    assert has(DOCS / 'how_to/two_racks.md', *figures.groups())


@pytest.mark.parametrize(
    ('title', 'words'),
    [
        ('7 B', r'Start with DiLoCo, H = 50.*`enable_diloco=true`.*To compare DEF-Q, compression 16'),
        ('ResNet-50', r'hides 81 %.*Dense is best.*Change nothing.*Start with DEF-Q, compression 16'),
        (
            '1.3 B',
            r'7.56 GB over every node.*Start with DiLoCo, H = 50: 1.87 times as fast as one worker.*still '
            r'1.59 times.*To compare DEF-Q',
        ),
        (
            '300 M',
            r'printed --> \*\*No, .*not for home users.*sites of your own\..*Start with DiLoCo, H = 200',
        ),
        (
            'LoRA',
            r'Start with DEF-Q, compression 16, inside=4: 1.10 times.*until 45 % hides, .* until 59 %;',
        ),
        ('One machine', r'Nothing here pays within one machine'),
    ],
)
def test_the_answers_for_six_clusters(title, words):
    """The page holds what the program prints: `python -m experiments numbers` writes it."""
    section = (DOCS / 'plans.md').read_text().partition(f'## {title}')[2].partition('\n## ')[0]
    assert re.search(words, ' '.join(section.split()))


@pytest.mark.parametrize('params', ['7B', '6M'])
def test_dense_is_best_if_most_is_hidden(params, capsys):
    page = DOCS / 'plans.md'
    command = re.search(rf'def_jax\.plan (--params={params} .*?)\n```', page.read_text(), re.DOTALL)[
        1
    ].replace('\\', ' ')
    assert main([*command.split(), '--overlap=0.95']) == 0
    assert 'Dense is best' in capsys.readouterr().out
