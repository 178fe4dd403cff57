"""The figure of docs/concept.md, in a headless browser: it is Algorithm 1, and its sliders move it."""

import html
import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import reference

STATIC = Path(__file__).parents[2] / 'docs' / '_static'
BROWSERS = ('chromium', 'chromium-browser', 'google-chrome', 'chrome')
DIM, STEPS = 16, 200
DEFAULT = dict(detach=0.3, ratio=4, workers=8, noise=3, learningRate=0.02, momentum=0.5, seed=1)


def in_browser(script, tmp_path):
    """What the script returns on a page that holds the figure, as JSON."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f'needs one of {", ".join(BROWSERS)} on the PATH')
    page = tmp_path / 'page.html'
    page.write_text(
        f'<!DOCTYPE html><meta charset="utf-8"><link rel="stylesheet" href="{STATIC.as_uri()}/site.css">'
        f'<body><div class="playground"></div><script src="{STATIC.as_uri()}/playground.js"></script>'
        '<pre id="answer"></pre><script>addEventListener("load", () => {'
        f'const answer = (() => {{ {script} }})();'
        'document.getElementById("answer").textContent = JSON.stringify(answer); })</script>'
    )
    command = [browser, '--headless', '--no-sandbox', '--disable-gpu', f'--user-data-dir={tmp_path}/profile']
    process = subprocess.run(
        [*command, '--dump-dom', page.as_uri()], capture_output=True, text=True, timeout=120
    )
    answer = re.search(r'<pre id="answer">(.*?)</pre>', process.stdout, re.DOTALL)
    assert answer and answer[1], process.stderr[-2000:]
    return json.loads(html.unescape(answer[1]))


def uniforms(seed):
    """mulberry32."""

    def multiply(a, b):
        return a * b & 0xFFFFFFFF

    state = seed
    while True:
        state = state + 0x6D2B79F5 & 0xFFFFFFFF
        bits = multiply(state ^ state >> 15, state | 1)
        bits ^= bits + multiply(bits ^ bits >> 7, bits | 61) & 0xFFFFFFFF
        yield (bits ^ bits >> 14) / 2**32


def expected(detach, ratio, workers, noise, learningRate, momentum, seed):
    """The oracle's trajectory with the draws that the page makes: a block, then noise, at every step."""
    draws = uniforms(seed)

    def normal():
        radius = math.sqrt(-2 * math.log(1 - next(draws)))
        return radius * math.cos(2 * math.pi * next(draws))

    masks, noises = np.zeros((STEPS, DIM)), np.zeros((STEPS, workers, DIM))
    for mask, noises_of_step in zip(masks, noises, strict=True):
        start = DIM // ratio * int(ratio * next(draws))
        mask[start : start + DIM // ratio] = 1
        noises_of_step[:] = [[normal() for _ in range(DIM)] for _ in range(workers)]

    curvature = 6.0 ** (np.arange(DIM) / (DIM - 1))
    start = np.array([-3.0, *[1.0] * (DIM - 2), 1.4])
    return reference.algorithm_1(
        start,
        lambda point, k, t: curvature * point + noise * noises[t, k],
        masks,
        [learningRate] * STEPS,
        num_workers=workers,
        detach=detach,
        momentum=momentum,
    )


SETTINGS = [
    DEFAULT,
    DEFAULT | dict(detach=0.0, ratio=16, workers=1, momentum=0.0),
    DEFAULT | dict(detach=1.0, ratio=8, workers=4, noise=0.4, momentum=0.9, seed=2**32 - 1),
    DEFAULT | dict(ratio=1, workers=16),
]


def test_the_figure_is_algorithm_1(tmp_path):
    runs = in_browser(f'return {json.dumps(SETTINGS)}.map(window.simulate)', tmp_path)
    for settings, run in zip(SETTINGS, runs, strict=True):
        oracle = expected(**settings)
        points = oracle.x[:-1, None] - settings['detach'] * oracle.e[:-1]
        for name, value in dict(x=oracle.x, y=oracle.y, points=points, residuals=-oracle.e[:-1]).items():
            np.testing.assert_allclose(run[name], value, rtol=0, atol=1e-9, err_msg=f'{name}: {settings}')
