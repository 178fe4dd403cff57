"""Sphinx's configuration: `make docs` builds the site into docs/_build/html.

The source folder is the repository, not docs/: the pages under results/, CONTRIBUTING.md and CHANGELOG.md are
part of the site, and a relative link works both there and where the repository is browsed.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import def_jax  # noqa: E402

project = 'def_jax'
copyright = 'the def_jax authors'
release = version = def_jax.__version__
root_doc = 'docs/index'
include_patterns = ['docs/**.md', 'results/**.md', 'CHANGELOG.md', 'CONTRIBUTING.md']
exclude_patterns = ['.*', '**/_build', '**/__pycache__', 'runs', 'def_jax', 'tests', '*.egg-info', 'build']

extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'sphinx.ext.viewcode']
myst_heading_anchors = 3
suppress_warnings = ['myst.header']  # pages that programs write have no title
nitpicky = True
# CI has no network, so there are no inventories of other projects to look names up in.
nitpick_ignore_regex = [
    ('py:.*', r'(jax|jaxlib|numpy|np|optax|chex|ml_collections|rich|os|pathlib|collections|typing)\..*'),
    ('py:.*', r'(ArrayTree|Params|Updates|OptState|Array|PyTree|ConfigDict|DTypeLike|Path)'),
    ('py:exc', '.*'),
    ('py:obj', '.*'),  # in docstrings, `name` may be anything: it becomes a link where it is a public name
]

default_role = 'py:obj'
autodoc_member_order = 'bysource'
autodoc_typehints = 'signature'
autodoc_typehints_format = 'short'
python_maximum_signature_line_length = 90
napoleon_use_rtype = False

html_theme = 'furo'
html_title = 'def_jax'
html_static_path = ['_static']
html_extra_path = ['_root']
html_css_files = ['site.css']
html_copy_source = False
html_show_sphinx = False
