"""Runs the suite on eight fake CPU devices; this must happen before JAX initialises."""

import importlib.util
import os
import sys
from pathlib import Path

# Collectives of many fake devices on few cores can starve each other of threads; this gives them enough.
os.environ.setdefault('NPROC', '16')
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
if importlib.util.find_spec('def_jax') is None:  # neither installed nor found through pytest's `pythonpath`
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import chex

NUM_DEVICES = 8
chex.set_n_cpu_devices(NUM_DEVICES)


def pytest_sessionstart(session):
    del session
    chex.assert_devices_available(NUM_DEVICES, 'cpu')
