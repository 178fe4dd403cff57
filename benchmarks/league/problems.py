"""The problems of the league, by name."""

from benchmarks.league.contenders import Problem
from benchmarks.league.perceptron import PERCEPTRON
from benchmarks.league.transformer import TRANSFORMER

__all__ = ['PROBLEMS', 'Problem']

PROBLEMS = {'perceptron': PERCEPTRON, 'transformer': TRANSFORMER}
