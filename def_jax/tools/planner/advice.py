"""Which method to start with: the rules of docs/decide.md, and what is known of each method."""

import textwrap
from collections.abc import Sequence

from def_jax.tools.planner import Plan
from def_jax.tools.planner.comparison import COMPRESSIONS, KNOWN, Optimizer, Prediction, times

__all__ = ['advise']

WORTH = 1.05  # a smaller speed-up is not worth the change
NEAR = 0.9  # of the best speed-up is enough for a method that comes before it
# The largest models that were trained with a method, in parameters: WRN-28-10 with DEF, by its authors;
# DiLoCo (Charles et al., 2025) and Streaming DiLoCo (Douillard et al., 2025); PowerSGD (Ramesh et al., 2021).
TRAINED = {'DEF-Q': 36.5e6, 'DiLoCo': 10e9, 'Streaming DiLoCo': 1e9, 'PowerSGD': 12e9}
REACH = 3  # times as large a model may be for a method to be considered
# The largest models trained with DEF-Q itself: a transformer (docs/results.md) and, with SGD, a perceptron
# (results/benchmarks/time_to_accuracy.md); convolutions had 71 thousand parameters.
DEF_Q_ITSELF = {'adamw': 10.7e6, 'sgd': 5.3e6}
_UNTRAINED = (
    f'DEF-Q has not been trained at this size: DEF on {TRAINED["DEF-Q"] / 1e6:g} M parameters at most, by '
    f'its authors, DEF-Q on {DEF_Q_ITSELF["adamw"] / 1e6:g} M with AdamW, a transformer, and '
    f'{DEF_Q_ITSELF["sgd"] / 1e6:g} M with SGD, a perceptron.'
)
BEHIND = {16: 0.003, 64: 0.069}  # nats that it ended behind AdamW, by compression
CAREFUL = 10e6  # from so many parameters on, transformers take the smallest compression
FAR = 5e-3  # seconds: a message that takes longer leaves a site
THIN = 500e6  # bits per second: a slower link mostly does
_CODE = '    '  # Markdown's
_SHARD = 'Shard the model over more devices (`--fsdp`, `--gpus-per-link`).'
_FAR_AWAY = (
    '**No, if machines meet over the open internet: this is not for home users, volunteers or strangers.** '
    'All processes must trust the whole network, and elastic training, which survives a lost worker, has not '
    'been run on GPUs.'
)
_OWN_SITES = 'On a private line or a VPN between sites of your own:'


def advise(plan: Plan, methods: Sequence[Prediction], optimizer: Optimizer | None = None) -> str:
    """The method to start with, why, and the line to paste.

    Dense training wherever nothing is clearly faster. Otherwise the first in the table that is nearly as fast
    as the fastest and clearly faster than dense, among those that fit in the memory of a device and that
    anybody has trained models of about this size with; above all of these, among all but DEF-Q. If the
    largest models trained with it were smaller, the first that has trained models of the full size and is
    clearly faster than dense, even if it is not nearly as fast.

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
        near = _nearly(worth)
        if near[0].family != 'DEF-Q' and plan.params > TRAINED[near[0].family]:
            largest = max(TRAINED[each.family] for each in worth)
            known = min(plan.params, largest)
            near = [next(each for each in worth if TRAINED[each.family] >= known)]
        told = [_start(plan, dense, near, worth, optimizer), _caution(plan, near[0], optimizer)]
    untried = [each for each in others if each.compression == COMPRESSIONS[0] and each not in tried]
    told += [_compare(each, dense) for each in untried if dense.seconds >= WORTH * each.seconds]
    return '\n\n'.join(text for text in [_far_away(plan), *told] if text)


def _far_away(plan: Plan) -> str:
    if plan.latency >= FAR:
        return f'{_FAR_AWAY} {_OWN_SITES}'
    if plan.bandwidth > THIN:
        return ''
    return (
        f'{_FAR_AWAY} A link this slow mostly leaves a site: pass its `--latency`, between sites 0.01 to '
        f'0.1 s, on which this advice depends. {_OWN_SITES}'
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
    return f'Dense is best: {share}, and no method here is more than {times(gain)} times as fast. {kept}.'


def _start(
    plan: Plan,
    dense: Prediction,
    near: Sequence[Prediction],
    worth: Sequence[Prediction],
    optimizer: Optimizer | None,
) -> str:
    """What to start with, the first of `near`, and what else is worth it."""
    chosen, *others = near
    also = [
        each.name for each in others if each.family != chosen.family and plan.params <= TRAINED[each.family]
    ]
    told = [
        f'Start with {chosen.name}: {_faster(chosen, dense)}, whose communication is '
        f'{_share(plan, dense):.0f} % of a step.',
        _unless_hidden(plan, dense, chosen, worth),
    ]
    if also:
        told.append(f'Equally fast, within a tenth: {"; ".join(also)}. If you already use one, keep it.')
    if chosen.family != 'DEF-Q' and plan.params > (largest := TRAINED[chosen.family]):
        told.append(
            f'The largest model known to have been trained with it has {largest / 1e9:g} B parameters.'
        )
    elif chosen.family != 'DEF-Q':
        told += [_beyond(each, dense) for each in worth if _faster_unknown(plan, each, chosen)]
    then = f'Paste it; {chosen.then}.'
    if 'DiLoCo' in chosen.family:
        then += ' Its outer rate and momentum are the published ones.'
        if optimizer != 'sgd':
            then += ' In MaxText, set `enable_diloco=true` instead: it has a DiLoCo of its own.'
    told += [
        textwrap.indent(chosen.paste, _CODE),
        then,
        'These are times, not accuracies: compare both on your model.',
    ]
    return '\n\n'.join(text for text in told if text)


def _unless_hidden(plan: Plan, dense: Prediction, chosen: Prediction, worth: Sequence[Prediction]) -> str:
    """The shares of the all-reduce that must be hidden for dense training to win, if a step can hide them."""
    fastest = min(worth, key=lambda each: each.seconds)
    if plan.overlap or dense.seconds - WORTH * fastest.seconds > plan.step_time:
        return ''
    exposed = dense.seconds - plan.step_time
    until = {
        each.name: f'{100 * (dense.seconds - WORTH * each.seconds) / exposed:.0f} %'
        for each in (chosen, fastest)
    }
    first, last = until[chosen.name], until[fastest.name]
    more = f', {fastest.name} until {last} does' if last != first else ''
    return (
        f'This assumes that no communication hides behind the backward pass: {chosen.name} pays until '
        f'{first} hides{more}; beyond, stay dense. `--dense-step` measures it.'
    )


def _caution(plan: Plan, chosen: Prediction, optimizer: Optimizer | None) -> str:
    """What is not known of DEF-Q at this size, and what is known to go wrong with much compression."""
    if chosen.family != 'DEF-Q':
        return ''
    told = []
    if plan.params > (DEF_Q_ITSELF[optimizer] if optimizer else min(DEF_Q_ITSELF.values())):
        told.append(_UNTRAINED)
    if chosen.compression > KNOWN:
        told.append(
            f'Transformers, and a perceptron with 64 workers, ended behind at {chosen.compression}: where '
            f'{KNOWN} is fast enough, take it.'
        )
    low = COMPRESSIONS[0]
    if optimizer != 'sgd' and plan.params >= CAREFUL and chosen.compression > low:
        told.append(
            f'A transformer of {DEF_Q_ITSELF["adamw"] / 1e6:g} M parameters, one seed, ended '
            f'{BEHIND[KNOWN]:.2f} nats behind AdamW at {KNOWN} and {BEHIND[low]:g} at {low}: with '
            f'transformers, take {low}.'
        )
    return ' '.join(told)


def _faster_unknown(plan: Plan, other: Prediction, chosen: Prediction) -> bool:
    """Whether another method is faster, but not known to have trained a model of this size."""
    return plan.params > TRAINED[other.family] and other.seconds < chosen.seconds


def _beyond(other: Prediction, dense: Prediction) -> str:
    known = TRAINED[other.family] / 1e9
    return f'{other.name} would be {_faster(other, dense)}, but is known to {known:g} B parameters alone.'


def _compare(other: Prediction, dense: Prediction) -> str:
    code = textwrap.indent(other.paste, _CODE)
    return f'{_UNTRAINED} To compare {other.name}, {_faster(other, dense)}:\n\n{code}'


def _share(plan: Plan, dense: Prediction) -> float:
    return 100 * (1 - plan.step_time / dense.seconds)


def _faster(method: Prediction, dense: Prediction) -> str:
    return f'{times(dense.seconds / method.seconds)} times as fast as {dense.name}'


def _nearly(methods: Sequence[Prediction]) -> list[Prediction]:
    """Those that are nearly as fast as the fastest, in order."""
    fastest = min(method.seconds for method in methods)
    return [method for method in methods if NEAR * method.seconds <= fastest]
