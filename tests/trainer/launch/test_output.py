"""Output that nobody reads, or whose encoding has no λ, does not end a run."""

import io
import os
import sys

import pytest

from def_jax.trainer.launch import output


@pytest.mark.parametrize('read_first', [True, False])
def test_a_reader_that_ends_does_not_end_the_run(capsys, monkeypatch, read_first):
    """As in `train.py … | head -1`; or what is left in the buffer fails at the end."""
    reader, writer = os.pipe()
    with open(writer, 'w') as stdout:
        monkeypatch.setattr(sys, 'stdout', stdout)
        with output.lasting('train.py'):
            print('first', flush=read_first)
            os.close(reader)
            print('more', flush=read_first)
        assert sys.stdout is stdout
    error = capsys.readouterr().err
    assert error == 'train.py: standard output can no longer be written to; continuing without it.\n'


def test_letters_that_the_encoding_lacks_are_replaced_and_closed_streams_stay_closed(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, 'stdout', io.TextIOWrapper(raw, encoding='ascii'))
    with output.lasting('train.py'):
        print('DEF (ratio 8, λ=0.3)')
    assert raw.getvalue() == b'DEF (ratio 8, ?=0.3)\n'
    monkeypatch.setattr(sys, 'stdout', None)
    with output.lasting('train.py'):
        print('to nobody')
    assert sys.stdout is None
