"""Output that nobody reads, or whose encoding has no λ, does not end a run."""

import contextlib
import io
import os
import sys
from unittest import mock

from def_jax.trainer.launch import output


@contextlib.contextmanager
def piped():
    """Standard output into a pipe; its other end."""
    reader, writer = os.pipe()
    with open(writer, 'w') as stdout, mock.patch.object(sys, 'stdout', stdout):
        yield reader


def test_a_reader_that_ends_does_not_end_the_run(capsys):
    """As in `train.py … | head -1`."""
    with piped() as reader:
        stdout = sys.stdout
        with output.lasting('train.py'):
            print('first', flush=True)
            assert os.read(reader, 100) == b'first\n'
            os.close(reader)
            for _ in range(3):
                print('more', flush=True)
        assert sys.stdout is stdout
    error = capsys.readouterr().err
    assert error == 'train.py: standard output can no longer be written to; continuing without it.\n'


def test_what_is_left_in_the_buffer_does_not_fail_at_the_end(capsys):
    with piped() as reader, output.lasting('train.py'):
        print('more')
        os.close(reader)
    assert 'continuing without it' in capsys.readouterr().err


def test_letters_that_the_encoding_lacks_are_replaced(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, 'stdout', io.TextIOWrapper(raw, encoding='ascii'))
    with output.lasting('train.py'):
        print('DEF (ratio 8, λ=0.3)')
    assert raw.getvalue() == b'DEF (ratio 8, ?=0.3)\n'


def test_streams_that_are_closed_stay_closed(monkeypatch):
    monkeypatch.setattr(sys, 'stdout', None)
    with output.lasting('train.py'):
        print('to nobody')
    assert sys.stdout is None
