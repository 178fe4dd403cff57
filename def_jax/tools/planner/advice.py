"""Which method to start with: the rules of docs/decide.md, and what is known of each method."""

from collections.abc import Sequence

from def_jax.tools.planner import Plan
from def_jax.tools.planner.comparison import COMPRESSIONS, KNOWN, Optimizer, Prediction

__all__ = ['advise']

WORTH = 1.05  # a smaller speed-up is not worth the change
NEAR = 0.9  # of the best speed-up is enough for a method that comes before it
# The largest models that were trained with a method, in parameters: WRN-28-10 with DEF, by its authors;
# DiLoCo (Charles et al., 2025) and Streaming DiLoCo (Douillard et al., 2025); PowerSGD (Ramesh et al., 2021).
TRAINED = {'DEF-Q': 36.5e6, 'DiLoCo': 10e9, 'Streaming DiLoCo': 1e9, 'PowerSGD': 12e9}
REACH = 3  # times as large a model may be without a warning
DEF_Q_ITSELF = 10.7e6  # the largest model trained with DEF-Q, a transformer, see docs/results.md
BEHIND = {16: 0.003, 64: 0.069}  # nats that it ended behind AdamW, by compression
CAREFUL = 10e6  # from so many parameters on, transformers take the smallest compression
FAR = 5e-3  # seconds: a message that takes longer leaves a site
THIN = 500e6  # bits per second: a slower link mostly does
_SHARD = 'Shard the model over more devices (`--fsdp`, `--gpus-per-link`).'
_FAR_AWAY = (
    '**This is not for home users or strangers**: all processes must trust the whole network, such as a '
    'private line or a VPN between sites, and elastic training, which survives a lost worker, has not been '
    'run on GPUs.'
)


def advise(plan: Plan, methods: Sequence[Prediction], optimizer: Optimizer | None = None) -> str:
    """The method to start with, why, and the line to paste.

    Dense training wherever nothing is clearly faster. Otherwise the first in the table that is nearly as fast
    as the fastest and clearly faster than dense, among those that fit in the memory of a device and that
    anybody has trained models of about this size with; above all of these, among all but DEF-Q.

    Args:
        plan: the cluster and the model.
        methods: what `comparison.compare` returned for it.
        optimizer: what the model is trained with, as for `compare`.
    """
    if plan.workers == 1:
        return (
            'One worker sends nothing to others: train as you do now. **Nothing here pays within one '
            'machine**, whether its GPUs talk over NVLink or PCIe.'
        )
    fitting = [each for each in methods if each.memory <= (plan.memory or each.memory)]
    dense = next((each for each in fitting if each.family == 'dense'), None)
    if dense is None:
        least = min(each.memory for each in methods) / 1e9
        return (
            f'Nothing fits: parameters, gradients and state alone take {least:.3g} GB of a device that has '
            f'{plan.memory / 1e9:.3g} GB. {_SHARD}'
        )
    others = [each for each in fitting if each.family != 'dense']
    if optimizer == 'adamw' and plan.params >= CAREFUL:
        others = [each for each in others if each.compression <= COMPRESSIONS[0]]
    tried = [each for each in others if plan.params <= REACH * TRAINED[each.family]]
    pool = tried or [each for each in others if each.family != 'DEF-Q']
    worth = [each for each in pool if dense.seconds >= WORTH * each.seconds]
    if not worth:
        told = [_stay(plan, dense, pool)]
    else:
        told = [
            _start(plan, dense, _nearly(worth), bool(tried)),
            _caution(plan, _nearly(worth)[0], optimizer),
        ]
    untried = [each for each in others if each.compression == COMPRESSIONS[0] and each not in tried]
    told += [_compare(each, dense) for each in untried if dense.seconds >= WORTH * each.seconds]
    return '\n\n'.join(text for text in [_far_away(plan), *told] if text)


def _far_away(plan: Plan) -> str:
    if plan.latency >= FAR:
        return f'Messages that take so long leave a site. {_FAR_AWAY}'
    if plan.bandwidth > THIN:
        return ''
    return (
        'A link this slow mostly leaves a site: pass its `--latency`, between sites 0.01 to 0.1 s, on which '
        f'this advice depends. {_FAR_AWAY}'
    )


def _stay(plan: Plan, dense: Prediction, pool: Sequence[Prediction]) -> str:
    share = f'communication is {_share(plan, dense):.0f} % of its step'
    if not pool:
        return (
            f'Train with {dense.name}: {share}, but the methods that have trained models of this size '
            f'hold more than the {plan.memory / 1e9:.3g} GB of a device. {_SHARD}'
        )
    gain = max([1.0, *(dense.seconds / each.seconds for each in pool)])
    kept = 'Change nothing' if plan.gpus_per_link == 1 else f'Train with {dense.name}'
    return f'Dense is best: {share}, and no method here is more than {gain:.2f} times as fast. {kept}.'


def _start(plan: Plan, dense: Prediction, near: Sequence[Prediction], tried: bool) -> str:
    chosen, also = near[0], [each.name for each in near[1:] if each.family != near[0].family]
    told = (
        f'Start with {chosen.name}: {_faster(chosen, dense)}, whose communication is '
        f'{_share(plan, dense):.0f} % of a step.{_unless_hidden(plan, dense, near)}'
    )
    if also:
        told += f' Equally fast, within a tenth: {"; ".join(also)}. If you already use one of them, keep it.'
    if not tried:
        told += ' No method here is known to have trained a model of this size.'
    elif chosen.family != 'DEF-Q' and plan.params > (largest := TRAINED[chosen.family]):
        told += f' The largest model known to have been trained with it has {largest / 1e9:g} B parameters.'
    told += f'\n\n    {chosen.paste}\n\nPaste it; {chosen.then}.'
    if 'DiLoCo' in chosen.family:
        told += ' In MaxText, set `enable_diloco=true` instead: it has a DiLoCo of its own.'
    return f'{told} These are times, not accuracies: compare both on your model.'


def _unless_hidden(plan: Plan, dense: Prediction, near: Sequence[Prediction]) -> str:
    """The share of the all-reduce that must be hidden for dense training to win, if a step can hide it."""
    exposed = dense.seconds - plan.step_time
    hidden = dense.seconds - WORTH * min(each.seconds for each in near)
    if plan.overlap or hidden > plan.step_time:
        return ''
    return (
        ' This assumes that none of it hides behind the backward pass: where '
        f'{100 * hidden / exposed:.0f} % hides, stay dense. `--dense-step` measures it.'
    )


def _caution(plan: Plan, chosen: Prediction, optimizer: Optimizer | None) -> str:
    """What is known to go wrong with much compression."""
    if chosen.compression <= COMPRESSIONS[0]:
        return ''
    told = []
    if chosen.compression > KNOWN:
        told.append(
            f'Transformers, and a perceptron with 64 workers, ended behind at {chosen.compression}: where '
            f'{KNOWN} is fast enough, take it.'
        )
    if optimizer != 'sgd' and plan.params >= CAREFUL:
        low = COMPRESSIONS[0]
        told.append(
            f'A transformer of {DEF_Q_ITSELF / 1e6:g} M parameters, one seed, ended {BEHIND[KNOWN]:.2f} nats '
            f'behind AdamW at {KNOWN} and {BEHIND[low]:g} at {low}: with transformers, take {low}.'
        )
    return ' '.join(told)


def _compare(other: Prediction, dense: Prediction) -> str:
    return (
        f'{other.family} has not been trained at this size: DEF on {TRAINED[other.family] / 1e6:g} M '
        f'parameters at most, by its authors, {other.family} on {DEF_Q_ITSELF / 1e6:g} M. To compare '
        f'{other.name}, {_faster(other, dense)}:\n\n    {other.paste}'
    )


def _share(plan: Plan, dense: Prediction) -> float:
    return 100 * (1 - plan.step_time / dense.seconds)


def _faster(method: Prediction, dense: Prediction) -> str:
    return f'{dense.seconds / method.seconds:.2f} times as fast as {dense.name}'


def _nearly(methods: Sequence[Prediction]) -> list[Prediction]:
    """Those that are nearly as fast as the fastest, in order."""
    fastest = min(method.seconds for method in methods)
    return [method for method in methods if NEAR * method.seconds <= fastest]
