"""The methods compared, as one family: what each sends, where it takes gradients, which point it outputs.

SAEF with P = 0, PSync (CSER with H = 1, C2 = 0) and DEF with λ = 1 follow the same trajectory, and so do DEF
and DEF-A. In the paper's tables they differ only in the point that is evaluated. The methods after those of
the paper are systems published by others, as settings of `error_feedback`; `every` sets their number of local
steps. The last ones are the baselines, which are no such settings.
"""

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeVar

import optax

from def_jax import compressors
from def_jax.baselines.cser import cser_of_ratio
from def_jax.baselines.demo import demo
from def_jax.baselines.dense import all_reduce_mean
from def_jax.baselines.ef21 import ef21, ef21_sgdm
from def_jax.baselines.onebit_adam import onebit_adam
from def_jax.baselines.powersgd import powersgd
from def_jax.baselines.random_k import random_k
from def_jax.baselines.scaled import scaled
from def_jax.baselines.signs import sign_ef
from def_jax.baselines.sparse_loco import sparse_loco
from def_jax.baselines.top_k import top_k
from def_jax.error_feedback import error_feedback
from def_jax.ground.arguments import check_integer
from def_jax.ground.types import AxisName
from def_jax.options import PAPER_DETACH
from def_jax.presets import block_ratio, chosen_bits
from def_jax.wires import Bits

__all__ = ['METHODS', 'OPTIONS', 'Method', 'Point', 'get_method', 'trajectory']

T = TypeVar('T')

Point = Literal['x', 'y', 'own']

_BLOCKS = {'order': 'random', 'allocation': 'proportional'}
_FEEDBACK = {
    'inside': None,
    'bits': 32,
    'detach': PAPER_DETACH,
    'every': 1,
    'decay': 1.0,
    'outer': None,
    'average_every': 0,
    'skip_nonfinite': False,
    'overlap': False,
}
_BASELINES = {'rank': 0, 'chunk': 64, 'error_decay': 0.95, 'freeze_after': 100}

# Every hyper-parameter of the methods and of the blocks that they send, with its default; `ratio` has none.
OPTIONS: dict[str, Any] = {'ratio': None, **_BLOCKS, **_FEEDBACK, **_BASELINES}


@dataclasses.dataclass(frozen=True)
class Method:
    """One method. `METHODS` lists them.

    Attributes:
        title: its name in the paper's tables.
        answer: the point that it outputs: 'x', the parameters; 'y', `output_params`; 'own', each worker's own
            model x + r_k.
        kind: what is communicated: 'error_feedback', the compressed updates, after the optimizer; 'dense',
            the gradients; 'ef21', the compressed change of the gradients; 'baseline', the gradients or their
            average in a form of its own. All but the first precede the optimizer, which is then the same on
            all workers.
        detach: λ if the method fixes it, None if it is a hyper-parameter.
        averages: whether residuals are averaged over workers every P steps.
        single_worker: whether it is defined only for a single worker, with C(x) = x / ratio.
        blocks: makes its compressor.
        sends: arguments of `blocks` that the method fixes.
        fixes: arguments of `error_feedback` that the method fixes, besides λ.
        defaults: its defaults of other arguments, where they are not those of `error_feedback`.
        in_bytes: whether its ratio counts bytes against a float32 all-reduce, as `compression` of `def_sgd`.
        link: the transformation that communicates, if it is not `error_feedback`.
        takes: the arguments of `link` besides `axis_name` and the workers' optimizer.
        opens_dense: how many steps at the start send everything: a number, or the option that holds it.
    """

    title: str
    answer: Point
    kind: Literal['error_feedback', 'dense', 'ef21', 'baseline'] = 'error_feedback'
    detach: float | None = None
    averages: bool = False
    single_worker: bool = False
    blocks: Callable[..., compressors.Compressor] = compressors.random_block
    sends: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fixes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    in_bytes: bool = False
    link: Callable[..., optax.GradientTransformation] | None = None
    takes: tuple[str, ...] = ()
    opens_dense: int | str = 0

    @property
    def options(self) -> dict[str, Any]:
        """The hyper-parameters of the communication, with their defaults."""
        if self.link is not None:
            return {name: OPTIONS[name] for name in self.takes if name in OPTIONS}
        free = {'detach': self.detach is None, 'average_every': self.averages}
        found = _FEEDBACK | dict(self.defaults)
        return {name: found[name] for name in found if free.get(name, name not in self.fixes)}

    def dense_steps(self, options: Mapping[str, Any]) -> int:
        """How many steps at the start send everything, given its hyper-parameters."""
        opening = self.opens_dense
        return options.get(opening, self.options[opening]) if isinstance(opening, str) else opening

    def _path(self, average_every: int) -> 'Method':
        """What its trajectory depends on: all but its name, and averages only where they are taken."""
        averages = bool(self.averages and average_every)
        return dataclasses.replace(self, title='', answer='x', averages=averages)

    @property
    def ratio_is_free(self) -> bool:
        """Whether what is sent depends on the ratio."""
        return self.link is None or 'ratio' in self.takes or 'compressor' in self.takes

    @property
    def points(self) -> tuple[Point, ...]:
        """The points that a run of this method can report: its own output and any others it yields."""
        if self.kind != 'error_feedback':
            return ('x',)
        return ('x', 'y', 'own') if self.answer == 'own' or self.averages else ('x', 'y')

    def answers(self, average_every: int = 0) -> dict[Point, str]:
        """Titles, by point, of all methods that share this one's trajectory: one run serves them all."""
        path = self._path(average_every)
        return {m.answer: m.title for m in METHODS.values() if m._path(average_every) == path}

    def compressor(self, ratio: float, *, bits: Bits | None = None, **options: Any) -> compressors.Compressor:
        """The compressor that this method uses at `ratio`.

        Args:
            ratio: one element in `ratio` is sent; methods that send everything ignore it. With `in_bytes`, of
                bytes.
            bits: in which a number travels; None is the method's default.
            **options: further options of `random_block`, such as `order`; `random_k` has none.

        Raises:
            ValueError: if an argument is out of range or has no effect on the method.

        >>> compressor = METHODS['def'].compressor(64, order='shuffled')
        """
        fixed = {
            name: options.pop(name)
            for name in options.keys() & self.sends
            if options[name] != self.sends[name]
        }
        _check_unused(fixed, f'{self.title} fixes it')
        has_blocks = self.link is None or 'compressor' in self.takes
        if not has_blocks and self.kind != 'dense':
            _check_unused(options, f'{self.title} chooses what it sends itself')
            return compressors.identity()
        if self.in_bytes:
            ratio = block_ratio(ratio, chosen_bits(ratio, bits or self.options['bits']))
        known = _BLOCKS if self.blocks is compressors.random_block else {}
        unknown = {name: options.pop(name) for name in options.keys() - known}
        _check_unused(unknown, f'{self.title} draws individual elements')
        chosen = self.blocks(**{'ratio': ratio, **options, **self.sends})
        if self.kind == 'dense':
            return compressors.identity()
        return scaled(1 / ratio) if self.single_worker else chosen

    def optimizer(
        self,
        local: optax.GradientTransformation,
        shared: optax.GradientTransformation,
        axis_name: AxisName,
        compressor: compressors.Compressor,
        *,
        seed: int = 0,
        **options: Any,
    ) -> optax.GradientTransformation:
        """The optimizer chain, with the communication where this method has it.

        Args:
            local: transformations applied to the gradient first, e.g. weight decay.
            shared: the optimizer itself, e.g. momentum SGD. Inside error feedback it is local to each worker;
                otherwise it follows the communication and is the same on all workers.
            axis_name: the axis over workers.
            compressor: selects what is sent; see the method `compressor`.
            seed: selects the blocks.
            **options: hyper-parameters of the communication, see the property `options`. Methods without them
                ignore `detach`, `average_every` and `ratio`; others must be at their defaults.

        Raises:
            ValueError: if an argument is out of range or has no effect on the method.

        >>> import def_jax
        >>> optimizer = METHODS['ef'].optimizer(
        ...     optax.add_decayed_weights(5e-4), optax.sgd(0.1), 'workers', def_jax.random_block(256))
        """
        detach, own = options.get('detach'), self.options
        if isinstance(detach, str) and 'detach' not in own:
            raise ValueError(
                f'{detach=} estimates λ, but {self.title} fixes it or has none. Keep the default, or use DEF.'
            )
        period = options.get('average_every', 0)  # even if the method does not average
        check_integer('average_every', period, 0, 'a number of steps, 0 for never')
        unused = {name: value for name, value in options.items() if name not in {*own, *_IGNORED}}
        fixed = {name: unused.pop(name) for name in unused.keys() & self.fixes}
        _check_unused(fixed, f'{self.title} fixes it')
        _check_unused(unused, f'{self.title} does not use it')
        chosen = {name: value for name, value in options.items() if name in own}
        chosen = {**self.defaults, **chosen, **self.fixes}
        given: dict[str, Any] = {'compressor': compressor, 'seed': seed}
        if self.link is not None:
            given = {name: value for name, value in given.items() if name in self.takes}
        elif self.detach is not None:
            given['detach'] = self.detach
        make: Callable = self.link or error_feedback
        if self.kind == 'error_feedback':
            return make(axis_name=axis_name, inner=optax.chain(local, shared), **given, **chosen)
        return optax.chain(local, make(axis_name=axis_name, **given, **chosen), shared)


_IGNORED = ('detach', 'average_every', 'ratio')  # by methods without them, since every run has them


def _check_unused(given: Mapping[str, Any], reason: str) -> None:
    """Raises ValueError if any of these options, which have no effect here, is not at its default."""
    for name, value in given.items():
        default = look_up('option', name, OPTIONS)
        if value != default:
            raise ValueError(f'{name}={value!r} has no effect, since {reason}. Set {name}={default}.')


# The published outer optimizer of DiLoCo (Douillard et al., 2023, Section 3.1), unless another is given.
_OUTER = optax.sgd(0.7, momentum=0.9, nesterov=True)

METHODS: dict[str, Method] = {
    'sgd': Method('SGD', 'x', kind='dense', link=all_reduce_mean),
    'ef': Method('EF', 'x', detach=0.0),
    'saef': Method('SAEF', 'x', detach=1.0, averages=True),
    'psync': Method('PSync', 'own', detach=1.0),
    'def': Method('DEF', 'y'),
    'def_a': Method('DEF-A', 'x'),
    'def_q': Method(
        *('DEF-Q', 'x'),
        sends={'order': 'shuffled', 'allocation': 'balanced'},
        # Without a compression to choose by, the bits are those at 64.
        defaults={'bits': chosen_bits(64, 'auto'), 'detach': 'auto'},
        in_bytes=True,
    ),
    'ef21': Method('EF21', 'x', kind='ef21', link=ef21, takes=('compressor', 'seed'), opens_dense=1),
    'sgd_ia': Method('SGD-IA', 'x', detach=1.0, single_worker=True),
    'local_sgd': Method('Local SGD', 'y', detach=1.0, sends={'ratio': 1}),
    'diloco': Method('DiLoCo', 'x', detach=1.0, sends={'ratio': 1}, defaults={'outer': _OUTER}),
    'streaming_diloco': Method(
        'Streaming DiLoCo', 'x', detach=1.0, sends={'order': 'cyclic'}, defaults={'outer': _OUTER}
    ),
    'sparta': Method('SPARTA', 'y', detach=1.0, blocks=random_k),
    'random_replicator': Method('random replicator', 'x', detach=0.0, fixes={'decay': 0.999}),
    'cser': Method('CSER', 'own', detach=1.0, link=cser_of_ratio, takes=('ratio', 'every', 'seed')),
    'powersgd': Method('PowerSGD', 'x', kind='baseline', link=powersgd, takes=('ratio', 'rank', 'seed')),
    'top_k': Method('top-k', 'x', detach=0.0, link=top_k, takes=('ratio',)),
    'demo': Method('DeMo', 'x', kind='baseline', link=demo, takes=('ratio', 'chunk')),
    'sign_ef': Method('EF-signSGD', 'x', detach=0.0, link=sign_ef),
    'onebit_adam': Method(
        '1-bit Adam', 'x', 'baseline', link=onebit_adam, takes=('freeze_after',), opens_dense='freeze_after'
    ),
    'sparse_loco': Method(
        *('SparseLoCo', 'x'),
        detach=1.0,
        link=sparse_loco,
        takes=('ratio', 'every', 'chunk', 'error_decay'),
    ),
    'ef21_sgdm': Method(
        'EF21-SGDM', 'x', kind='ef21', link=ef21_sgdm, takes=('compressor', 'seed'), opens_dense=1
    ),
}


def get_method(name: str) -> Method:
    """The method called `name`.

    Args:
        name: a key of `METHODS`.

    Raises:
        ValueError: if there is no method of that name.

    >>> get_method('def').title
    'DEF'
    """
    return look_up('method', name, METHODS)


def trajectory(name: str, average_every: int = 0) -> str:
    """The method whose run also serves `name`: the same trajectory, evaluated at another point.

    Args:
        name: a key of `METHODS`.
        average_every: period P of the residual averages. Unless it is 0, SAEF has a trajectory of its own.

    Returns:
        The first key of `METHODS` with that trajectory.

    Raises:
        ValueError: if there is no method of that name.

    >>> trajectory('def_a'), trajectory('psync'), trajectory('psync', average_every=10)
    ('def', 'saef', 'psync')
    """
    path = get_method(name)._path(average_every)
    return next(key for key, method in METHODS.items() if method._path(average_every) == path)


def look_up(kind: str, name: Any, table: Mapping[str, T]) -> T:
    """`table[name]`, or a ValueError that lists the names.

    >>> look_up('method', 'deff', {'sgd': 0, 'def': 1})
    Traceback (most recent call last):
    ValueError: method='deff' is unknown; it must be one of sgd, def. Did you mean 'def'?
    """
    if name not in table:
        raise ValueError(
            f'{kind}={name!r} is unknown; it must be one of {", ".join(table)}.{nearest(name, table)}'
        )
    return table[name]


def nearest(name: Any, names: Iterable[str]) -> str:
    """' Did you mean ...?' if one of `names` is close to `name`, else an empty string.

    >>> nearest('metod', ['method', 'ratio'])
    " Did you mean 'method'?"
    """
    near = difflib.get_close_matches(str(name), list(names), n=1)
    return f' Did you mean {near[0]!r}?' if near else ''
