"""Output that nobody reads, or whose encoding has no λ, does not end a run."""

import io
import os
import sys

import pytest

from def_jax.trainer.launch import output


@pytest.mark.parametrize('flush', [True, False])
@pytest.mark.parametrize('place', ['a pipe', 'a full disk'])
def test_output_that_cannot_be_written_does_not_end_the_run(capsys, monkeypatch, place, flush):
    """Its reader has ended, as in `train.py … | head -1`; what is left in the buffer fails at the end."""
    reader, writer = os.pipe() if place == 'a pipe' else (os.open('/dev/full', os.O_WRONLY) for _ in range(2))
    with open(writer, 'w') as stdout:
        monkeypatch.setattr(sys, 'stdout', stdout)
        with output.lasting('train.py'):
            print('first', flush=flush)
            os.close(reader)
            print('more', flush=flush)
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
