"""docs/decide.md and docs/plans.md say what the planner does, number for number."""

import re
from pathlib import Path

import pytest

from def_jax.tools.planner import Plan, advice, comparison, program
from def_jax.tools.planner.program import main

DOCS = Path(__file__).parents[2] / 'docs'


def test_the_page_that_decides_says_what_the_planner_does():
    decide, diloco = (
        ' '.join((DOCS / page).read_text().split()) for page in ('decide.md', 'how_to/from_diloco.md')
    )
    trained, (least, *_) = advice.TRAINED, comparison.COMPRESSIONS
    seen = f'DEF has seen {trained["DEF-Q"] / 1e6:g} M, DEF-Q {advice.DEF_Q_ITSELF["adamw"] / 1e6:g} M'
    billions = {family: f'{params / 1e9:g}' for family, params in trained.items()}
    careful = f'from {advice.CAREFUL / 1e6:g} M parameters on'
    limit = float(f'{advice.REACH * trained["DEF-Q"]:.1g}')
    for words in (
        f'| more than about {limit / 1e6:g} M parameters |',
        f'models of up to {billions["DiLoCo"]} billion parameters (Streaming DiLoCo, '
        f'{billions["Streaming DiLoCo"]} billion)',
        f'up to {billions["PowerSGD"]} billion, but not with FSDP inside a worker. {seen}: compare '
        f"`def_adamw(lr, {least}, 'workers')`",
        f"`def_adamw(lr, {comparison.KNOWN}, 'workers')`, {least} {careful}",
        f'{careful}, DEF-Q is recommended at {least} alone',
        f'within a tenth of the fastest, as long as it is {advice.WORTH:g} times as fast as dense',
        f'more than {1 / (advice.WORTH - 1):.0f} times as long, nothing can make it {advice.WORTH:g} times',
    ):
        assert words in decide, words
    assert (
        f'above about {limit / 1e6:g} M parameters**: it has been used up to {billions["DiLoCo"]} billion'
        in diloco
    )
    assert advice.NEAR == 0.9 and f'{seen}.' in diloco


def test_the_tables_of_the_page_that_decides():
    decide = ' '.join((DOCS / 'decide.md').read_text().split())
    for gbits in (1, 10, 25, 100, 400):
        seconds = Plan(1e9, 1, gbits * 1e9, workers=16, latency=0.0).all_reduce(1e9, 2)
        assert f'| {gbits} Gbit/s | {seconds:g} | {seconds / (advice.WORTH - 1):g} |' in decide
    for family, copies in comparison.COPIES.items():
        assert f'| {family} | {4 * copies["sgd"]} | {4 * copies["adamw"]} |' in decide
    nodes = Plan(7e9, 3, 1e11, workers=16, gpus_per_link=8, fsdp=True)
    inside, over_all, def_q, *_ = (each.memory / 1e9 for each in comparison.compare(nodes))
    diloco, racks = (
        ' '.join((DOCS / f'how_to/{page}.md').read_text().split()) for page in ('from_diloco', 'two_racks')
    )
    dense = comparison.COPIES['dense']['adamw']
    more = {family: 4 * (copies['adamw'] - dense) for family, copies in comparison.COPIES.items()}
    assert f'| {more["DiLoCo"]} bytes a parameter: ' in diloco and f'| {more["DEF-Q"]}: the resid' in diloco
    moved = program._inside(Plan(1.3e9, 1, 25e9, workers=2, gpus_per_link=32, fsdp=True))
    assert re.search("moves .* GB over every node's link in a step, .* Gbit/s", moved)[0] in racks
    held = f'takes {over_all:g} GB over all 128 devices and {inside:g} GB inside a node of 8'
    assert f'{held}, DEF-Q there {def_q:g} GB' in decide


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


@pytest.mark.parametrize(('params', 'words'), [('7B', 'it is not'), ('6M', 'nothing is needed')])
def test_dense_is_best_if_most_is_hidden(params, words, capsys):
    page = (DOCS / 'plans.md').read_text()
    command = re.search(rf'def_jax\.plan (--params={params} .*?)\n```', page, re.DOTALL)[1].replace('\\', ' ')
    assert f'(`--overlap=0.95`), {words}' in page
    assert main([*command.split(), '--overlap=0.95']) == 0
    assert 'Dense is best' in capsys.readouterr().out
