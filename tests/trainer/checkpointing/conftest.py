"""What the tests of checkpoints share."""

import pytest
import training_fixtures as fixtures
from absl import logging


@pytest.fixture(scope='module')
def saved(recorded, tmp_path_factory):
    """A folder with the checkpoints of steps 7 and 9; that of step 4 has been dropped."""
    folder = tmp_path_factory.mktemp('saved')
    fixtures.save(folder, recorded, 4, 7, 9)
    return folder


@pytest.fixture
def warnings(monkeypatch):
    """What is logged as a warning."""
    lines = []
    monkeypatch.setattr(logging, 'warning', lambda text, *args: lines.append(text % args))
    return lines
