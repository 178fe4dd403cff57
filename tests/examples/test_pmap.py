"""Trainers under `jax.pmap`: they learn, and the mean of the gradient, left in by mistake, is caught."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / 'examples'
# The steps of a short run, and what its result must exceed: an accuracy, minus a loss, a return.
TRAINERS = {
    'pmap_train_state': (100, 0.7),
    'pmap_language_model': (40, -3.6),
    'pmap_imagenet': (120, 0.5),
    'pmap_ppo': (15, -8),  # it begins at -18
}
# The line that a dense trainer has instead; that of the others is a pmean, as in tests/test_pmap_traps.py.
LINES = {
    'pmap_language_model': ('# was: grads = jax.lax.psum', 'grads = jax.lax.psum'),
    'pmap_ppo': ('pmap_axis_name=None)', "pmap_axis_name='i')"),
}


@pytest.mark.slow
@pytest.mark.parametrize('name', TRAINERS)
def test_it_learns(name):
    pytest.importorskip('flax')
    num_steps, reached = TRAINERS[name]
    result = runpy.run_path(str(EXAMPLES / f'{name}.py'))['main'](num_steps)
    assert (-result if name == 'pmap_language_model' else result) > reached


@pytest.mark.slow
@pytest.mark.parametrize('name', LINES)
def test_a_mean_that_is_left_in_is_caught(name, tmp_path):
    """`main` calls `def_jax.check` on the compiled step before it trains."""
    pytest.importorskip('flax')
    source, (line, dense) = (EXAMPLES / f'{name}.py').read_text(), LINES[name]
    assert line in source
    (tmp_path / 'left_in.py').write_text(source.replace(line, dense))
    with pytest.raises(ValueError, match=r'bytes to other workers, but the message has .*pmean or psum'):
        runpy.run_path(str(tmp_path / 'left_in.py'))['main'](1)
