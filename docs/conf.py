"""Sphinx's configuration: `make docs` builds the site into docs/_build/html.

The source folder is the repository, not docs/: the pages under results/, CONTRIBUTING.md and CHANGELOG.md are
part of the site, and a relative link works both there and where the repository is browsed.
"""

import inspect
import os
import pydoc
import re
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

from docutils import nodes  # noqa: E402
from sphinx.util.docutils import SphinxDirective  # noqa: E402

import def_jax  # noqa: E402
from def_jax.trainer.configuration.defaults import SECTIONS  # noqa: E402

project = 'def_jax'
copyright = 'the def_jax authors'
release = version = def_jax.__version__
root_doc = 'docs/index'
include_patterns = ['docs/**.md', 'results/**.md', 'CHANGELOG.md', 'CONTRIBUTING.md']
exclude_patterns = ['.*', '**/_build', '**/__pycache__', 'runs', '*.egg-info', 'build']
exclude_patterns += ['def_jax', 'experiments', 'tests']

extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'sphinx.ext.viewcode']
myst_heading_anchors = 3
suppress_warnings = ['myst.header']  # pages that programs write have no title
nitpicky = True
nitpick_ignore_regex = [
    (
        'py:class',
        r'(jax|numpy|optax|collections|typing)\..*',
    ),  # CI has no network to look other projects' names up
    ('py:exc', '.*'),
    ('py:obj', '.*'),  # in docstrings, `name` may be anything: it becomes a link where it is a public name
]
default_role = 'py:obj'
autodoc_member_order = 'bysource'
autodoc_typehints = 'none'  # aliases such as Compressor would be spelled out; the text says what is meant
autodoc_preserve_defaults = True
autodoc_default_options = {'no-value': True}  # a table of constants is long; its docstring says what is in it
python_maximum_signature_line_length = 90
napoleon_use_rtype = False

html_theme = 'furo'
html_title = 'def_jax'
html_static_path = ['_static']
html_extra_path = ['_root']
html_css_files = ['site.css']
html_favicon = '_static/favicon.svg'
html_copy_source = False
html_show_sphinx = False


# In a table's cell, what stays on one line: 96.2 ± 0.7 %, 0.05 (76), [-0.01, +0.02].
_JOINTS = re.compile(r' (?=±)|(?<=±) |(?<=\d) (?=%|\(\d)|(?<=,) (?=[-+]?[\d.]+\])')


def keep_together(app, doctree):
    """A number stays with its deviation, unit and share, an interval with its ends, on one line of a cell."""
    for entry in doctree.findall(nodes.entry):
        for text in list(entry.findall(nodes.Text)):
            text.parent.replace(text, nodes.Text(_JOINTS.sub('\N{NO-BREAK SPACE}', text)))


def dedent_excerpts(app, doctree):
    """Lines from the middle of a file begin at the left, as there is little room on a telephone."""
    for block in doctree.findall(nodes.literal_block):
        block.rawsource = textwrap.dedent(block.astext())
        block.children = [nodes.Text(block.rawsource)]


class ConfigurationKeys(SphinxDirective):
    """A table of every key of a training configuration, from its entry in def_jax.trainer.configuration."""

    def run(self):
        changes = {'never': '', 'always': 'yes', 'regroups': 'yes', 'grows': 'may grow'}
        changes |= {'with_workers': 'with `num_workers`'}
        lines = []
        for title, keys in SECTIONS.items():
            lines += ['', f'**{title}**', '', '| key | default | meaning | may change on resumption |']
            lines += ['|---|---|---|---|']
            lines += [
                f'| `{name}` | `{key.default!r}` | {key.help} | {changes[key.change]} |'
                for name, key in keys.items()
            ]
        return self.parse_text_to_nodes('\n'.join(lines))


def commands_as_code(app, what, name, obj, options, lines):
    """Indented commands of a docstring become code: as prose, they run together and get en-dashes."""
    for number in reversed(range(1, len(lines))):
        if lines[number].startswith('    python -m ') and not lines[number - 1]:
            lines[number:number] = ['.. code-block:: sh', '']


def comments_of_fields(app, what, name, obj, options, lines):
    """A NamedTuple's field shows its comment, where Python has "Alias for field number 0"."""
    if lines and lines[0].startswith('Alias for field number '):
        path, _, field = name.rpartition('.')
        source = inspect.getsource(pydoc.locate(path))
        lines[:] = re.findall(rf'^    {field}: .*  # (.*)$', source, re.MULTILINE)


def setup(app):
    app.connect('autodoc-process-docstring', commands_as_code)
    app.connect('autodoc-process-docstring', comments_of_fields)
    app.add_directive('configuration-keys', ConfigurationKeys)
    app.connect('doctree-read', keep_together)
    app.connect('doctree-read', dedent_excerpts)
