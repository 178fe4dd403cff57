"""What the paper's tables have in common: their methods, the candidates for rates, and how rates are chosen.

The paper's protocol differs from the rule of `tuning`: a few candidates in place of a grid that grows, chosen
by accuracy in runs that hold out training images, on which the reported runs train as well.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from def_jax.baselines.methods import METHODS, trajectory
from experiments.tuning import Contender, Setting

__all__ = ['COMPRESSED', 'DIGITS', 'RATES', 'by_ratio', 'contender', 'def_q', 'protocol']

COMPRESSED = {'ef': 'EF', 'saef': 'SAEF', 'psync': 'PSync', 'def': 'DEF', 'def_a': 'DEF-A'}
RATES = (0.1, 0.05, 0.01)  # the paper's candidates
DIGITS = {'name': 'digits'}
_HELD_OUT = {'digits': 200, 'cifar10': 5000, 'cifar100': 5000, 'imagenet': 50_000}


def contender(
    title: str, name: str, rates: Sequence[float] = RATES, paper: str = '', **options: Any
) -> Contender:
    """A method at candidate rates; methods that are points of one run, as DEF and DEF-A are, share it."""
    method = trajectory(name)
    return Contender(title, method, options, rates=tuple(rates), point=METHODS[name].answer, paper=paper)


def def_q(compression: int, rates: Sequence[float]) -> Contender:
    """The preset in two bits, at a compression in bytes."""
    return contender(f'DEF-Q, 1/{compression}, 2 bits', 'def_q', rates, ratio=compression, bits=2)


def protocol(name: str, where: Mapping[str, Any], contenders: Sequence[Contender], **changes: Any) -> Setting:
    """A setting under the paper's protocol.

    Args:
        name: its heading.
        where: arguments of the problem 'paper', with the name of a file of configs/.
        contenders: the methods.
        **changes: other fields of the setting.
    """
    return Setting(
        name=name,
        problem='paper',
        where=where,
        contenders=contenders,
        by_accuracy=True,
        **{
            'margin': 0.5,
            'tuning_where': {'validation_examples': _HELD_OUT[where['name']]},
            'tuning_seeds': (100,),
            'seeds': (0, 1, 2),
            **changes,
        },
    )


def by_ratio(
    name: str,
    where: Mapping[str, Any],
    sgd: str,
    paper: Mapping[int, Sequence[str]],
    rates: Mapping[str, Sequence[float]] | None = None,
    **changes: Any,
) -> list[Setting]:
    """A setting for each ratio: SGD, and the compressed methods against it.

    Args:
        name: begins the headings.
        where: see `protocol`.
        sgd: the paper's number of SGD.
        paper: by ratio, the paper's numbers, one for each of `COMPRESSED`; empty where it has none.
        rates: candidates by title, or by ratio and title, e.g. '64 DEF'; the paper's where there are none.
        **changes: other fields of the settings.
    """
    given = rates or {}
    settings = []
    for ratio, numbers in paper.items():
        methods = [contender('SGD', 'sgd', given.get('SGD', RATES), sgd, ratio=1)]
        for (method, title), number in zip(COMPRESSED.items(), numbers, strict=True):
            tried = given.get(f'{ratio} {title}', given.get(title, RATES))
            methods.append(contender(title, method, tried, number, ratio=ratio))
        settings.append(protocol(f'{name}, ratio {ratio}', where, methods, **changes))
    return settings
