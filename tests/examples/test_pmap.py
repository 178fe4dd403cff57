"""Trainers under `jax.pmap`: they learn, and the mean of the gradient, left in by mistake, is caught."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / 'examples'
# The steps of a short run, what its result must reach, and the line that the dense trainer has instead.
TRAINERS = {
    'pmap_train_state': (100, 0.7, '# was: grads = jax.lax.pmean'),
    'pmap_language_model': (40, -3.6, '# was: grads = jax.lax.psum'),
    'pmap_imagenet': (120, 0.5, '# was: grads = jax.lax.pmean'),
    'pmap_ppo': (15, -8, 'pmap_axis_name=None)'),  # it begins at -18
}


@pytest.mark.slow
@pytest.mark.parametrize('name', TRAINERS)
def test_it_learns_and_a_mean_that_is_left_in_is_caught(name, tmp_path):
    """`main` calls `def_jax.check` on the compiled step before it trains."""
    pytest.importorskip('flax')
    num_steps, reached, line = TRAINERS[name]
    result = runpy.run_path(str(EXAMPLES / f'{name}.py'))['main'](num_steps)
    assert (-result if name == 'pmap_language_model' else result) > reached
    source = (EXAMPLES / f'{name}.py').read_text()
    dense = line.removeprefix('# was: ').replace('=None', "='i'")
    assert source.count(line) == 2 - ('was' in line)  # once in the diff of the header, too
    (tmp_path / 'left_in.py').write_text(source.replace(line, dense))
    with pytest.raises(ValueError, match=r'bytes to other workers, but the message has .*pmean or psum'):
        runpy.run_path(str(tmp_path / 'left_in.py'))['main'](num_steps)
