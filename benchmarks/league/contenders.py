"""The methods that are compared, with their settings."""

import dataclasses
import functools
from typing import Any, NamedTuple

import optax

import def_jax

__all__ = ['CONTENDERS', 'STEPS', 'WORKERS', 'Contender']

WORKERS, STEPS = 8, 800


class Contender(NamedTuple):
    """A method with its settings."""

    title: str
    method: str
    ratio: float = 1
    blocks: dict[str, Any] = {}  # noqa: RUF012  arguments of the compressor
    options: dict[str, Any] = {}  # noqa: RUF012  of the method's optimizer
    link: dict[str, Any] = {}  # noqa: RUF012  other arguments of the method's own link
    momentum: float = 0.9
    rate: float = 0.1  # in the middle of the grid

    def optimizer(self, learning_rate: Any) -> optax.GradientTransformation:
        method = def_jax.get_method(self.method)
        if self.link:
            method = dataclasses.replace(method, link=functools.partial(method.link, **self.link))
        own = {'ratio': self.ratio} if 'ratio' in method.takes else {}
        return method.optimizer(
            optax.identity(),
            optax.sgd(learning_rate, momentum=self.momentum or None),
            'workers',
            method.compressor(self.ratio, **self.blocks),
            **own,
            **self.options,
        )


def contenders(ratio: int) -> list[Contender]:
    """The methods whose messages follow the ratio."""
    ours = {'order': 'shuffled', 'allocation': 'balanced'}
    return [
        Contender('DEF, ours', 'def', ratio, ours, {'detach': 'auto'}, momentum=0.0, rate=0.5),
        Contender('DEF (paper)', 'def', ratio),
        Contender('EF', 'ef', ratio, rate=0.03),
        Contender('top-k', 'top_k', ratio),
        Contender('DeMo', 'demo', ratio, momentum=0.0, rate=0.003),
        Contender('CSER', 'cser', ratio, options={'every': 8}),
        Contender('EF21-SGDM', 'ef21_sgdm', ratio, momentum=0.0, rate=0.5),
        Contender('Local SGD', 'local_sgd', options={'every': ratio}),
        Contender('DiLoCo', 'diloco', options={'every': ratio}),
        Contender('SPARTA', 'sparta', ratio),
        Contender('random replicator', 'random_replicator', ratio, momentum=0.0, rate=0.5),
    ]


def without_momentum(known: list[Contender]) -> list[Contender]:
    """The same methods with plain SGD, the setting of ours, and rates of η / (1 - μ)."""
    return [
        contender._replace(title=f'{contender.title} (no momentum)', momentum=0.0, rate=5 * contender.rate)
        for contender in known
        if contender.momentum and contender.title != 'EF'
    ]


CONTENDERS = [
    Contender('SGD', 'sgd'),
    *contenders(16),
    Contender('PowerSGD', 'powersgd', 16),
    Contender('EF-signSGD', 'sign_ef'),
    Contender(
        '1-bit Adam',
        'onebit_adam',
        options={'freeze_after': 120},
        link={'eps': 1e-4},
        momentum=0.0,
        rate=0.003,
    ),
    *contenders(64),
]
CONTENDERS += without_momentum(CONTENDERS)
