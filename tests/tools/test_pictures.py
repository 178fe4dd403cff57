"""What every picture shares: the methods' colours, bands, labels that do not overlap."""

from itertools import combinations

import matplotlib.colors
import matplotlib.figure
import numpy as np

from def_jax.baselines import METHODS
from def_jax.tools import pictures

# What a deuteranope sees of linear RGB (Viénot et al., 1999).
DEUTERANOPE = np.array([[0.2927, 0.7073, 0], [0.2927, 0.7073, 0], [-0.0223, 0.0223, 1]])


def test_the_methods_colours_are_told_apart_by_the_colour_blind():
    assert set(pictures.COLORS) <= {method.title for method in METHODS.values()}
    seen = [DEUTERANOPE @ np.array(matplotlib.colors.to_rgb(c)) ** 2.2 for c in pictures.COLORS.values()]
    apart = [np.abs(a.clip(0) ** (1 / 2.2) - b.clip(0) ** (1 / 2.2)).max() for a, b in combinations(seen, 2)]
    assert min(apart) > 0.14


def test_a_band_of_one_standard_deviation():
    axes = matplotlib.figure.Figure().subplots()
    pictures.draw_band(axes, [1, 2], [[1.0, 3.0], [4.0, 4.0]])
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [2, 4])
    heights = axes.collections[0].get_paths()[0].vertices[:, 1]
    np.testing.assert_allclose([heights.min(), heights.max()], [2 - 2**0.5, 4])


def test_a_panel_has_the_height_of_its_rows(tmp_path):
    """However many rows its neighbours have: labels of many rows would lie on each other."""
    heights = [0.2, 4.0]
    with pictures.panels(tmp_path / 'rows.png', 2, 1, heights=heights) as axes:
        for panel in axes[:, 0]:
            panel.set(title='a problem', xlabel='points')
    size = axes[0, 0].figure.get_figheight()
    found = [panel.get_position().height * size for panel in axes[:, 0]]
    np.testing.assert_allclose(found, heights, rtol=0.15)
