"""Which method to start with: the rules of docs/decide.md, and what is known of each method."""

import textwrap
from collections.abc import Sequence

from def_jax.tools.planner import Plan
from def_jax.tools.planner.comparison import ALONE, CAREFUL, COMPRESSIONS, KNOWN, Optimizer, Prediction, times

__all__ = ['advise', 'far_away']

WORTH = 1.05  # a smaller speed-up is not worth the change
MISSED = 1.32  # as much longer than predicted a step of DEF-Q took at most, where it was measured
NEAR = 0.9  # of the best speed-up is enough for a method that comes before it
# The largest models that were trained with a method, in parameters: WRN-28-10 with DEF, by its authors;
# DiLoCo (Charles et al., 2025) and Streaming DiLoCo (Douillard et al., 2025); PowerSGD (Ramesh et al., 2021).
TRAINED = {'DEF-Q': 36.5e6, 'DiLoCo': 10e9, 'Streaming DiLoCo': 4e9, 'PowerSGD': 12e9}
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
FAR = 5e-3  # seconds: a message that takes longer leaves a site
THIN = 500e6  # bits per second: a slower link mostly does
LARGE = 80e9  # bytes, the memory of most devices in data centres
_CODE = '    '  # Markdown's
_FAR_AWAY = (
    '**No, if machines meet over the open internet: this is not for home users, volunteers or strangers.** '
    'All processes must trust the whole network, and elastic training, which survives a lost worker, has not '
    'been run on GPUs. [Hivemind](https://github.com/learning-at-home/hivemind), in PyTorch, was made for it.'
)
_OWN_SITES = 'All that follows is for a private line or a VPN between sites of your own.'


def advise(plan: Plan, methods: Sequence[Prediction], optimizer: Optimizer | None = None) -> str:
    """The method to start with, why, and the line to paste.

    Dense training, or one worker alone, wherever nothing is clearly faster. Otherwise the first in the table
    that is clearly faster and nearly as fast as the fastest, among those that fit in the memory of a device
    and that anybody has trained models of about this size with; above all of these, among all but DEF-Q. If
    the largest models trained with it were smaller, the first that has trained models of the full size and is
    clearly faster, even if it is not nearly as fast. Within a site, so is DEF-Q's smallest compression for
    transformers that take no more.

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
    plain = [each for each in fitting if each.family in ('dense', ALONE)]
    if not plain:
        least = min(each.memory for each in methods) / 1e9
        return (
            f'Nothing fits: parameters, gradients and state alone take {least:.3g} GB of a device that has '
            f'{plan.memory / 1e9:.3g} GB. {_shard(plan)}'
        )
    base = _fastest(plain)
    others = [each for each in fitting if each not in plain]
    if careful := optimizer == 'adamw' and plan.params >= CAREFUL:
        others = [each for each in others if each.compression <= COMPRESSIONS[0]]
    tried = [each for each in others if plan.params <= REACH * TRAINED[each.family]]
    pool = tried or [each for each in others if each.family != 'DEF-Q']
    worth = [each for each in pool if base.seconds >= WORTH * each.seconds]
    if not worth:
        chosen, told = base, [_stay(plan, base, pool, kept=base is methods[0]), _inside_first(plan, base)]
    else:
        near = _nearly(worth)
        if careful and worth[0].family == 'DEF-Q' and not _leaves(plan):
            near = worth[:1]
        if near[0].family != 'DEF-Q' and plan.params > TRAINED[near[0].family]:
            largest = max(TRAINED[each.family] for each in worth)
            known = min(plan.params, largest)
            near = [next(each for each in worth if TRAINED[each.family] >= known)]
        chosen = near[0]
        told = [_start(plan, plain, chosen, worth, optimizer), _caution(plan, chosen, optimizer)]
    if not plan.memory and chosen.memory > LARGE:
        held = f'{chosen.memory / 1e9:.3g} GB of a device are needed, more than most have'
        told.append(f'{held}: pass its `--memory`. {_shard(plan)}')
    untried = [each for each in others if each.compression == COMPRESSIONS[0] and each not in tried]
    told += [_compare(each, base) for each in untried if base.seconds >= WORTH * each.seconds]
    return '\n\n'.join(text for text in told if text)


def far_away(plan: Plan) -> str:
    """What comes before anything else if the line leaves a site, or seems to."""
    if not _leaves(plan):
        return ''
    if plan.latency >= FAR:
        return f'{_FAR_AWAY} {_OWN_SITES}'
    return (
        f'{_FAR_AWAY} A link this slow mostly leaves a site: pass its `--latency`, between sites 0.01 to '
        f'0.1 s, on which the advice depends. {_OWN_SITES}'
    )


def _leaves(plan: Plan) -> bool:
    return plan.workers > 1 and (plan.latency >= FAR or plan.bandwidth <= THIN)


def _stay(plan: Plan, base: Prediction, pool: Sequence[Prediction], kept: bool) -> str:
    if base.sent:
        best, why = 'Dense', f'communication is {_share(plan, base):.0f} % of its step'
    else:
        best, why = 'One worker alone', 'dense training between workers takes longer'
    if not pool:
        return (
            f'Train with {base.name}: {why}, but the methods that have trained models of this size '
            f'hold more than the {plan.memory / 1e9:.3g} GB of a device. {_shard(plan)}'
        )
    gain = max([1.0, *(base.seconds / each.seconds for each in pool)])
    then = 'Change nothing' if kept and plan.gpus_per_link == 1 else f'Train with {base.name}'
    return (
        f'{best} is best: {why}, and no method that is recommended at this size is more than {times(gain)} '
        f'times as fast. {then}.'
    )


def _inside_first(plan: Plan, base: Prediction) -> str:
    gain = plan.sharded_step() / plan.dense_step()
    if not base.setting.endswith('FSDP inside') or gain < WORTH:
        return ''
    return (
        'If you train with FSDP over all GPUs now, first shard inside each worker alone, with a dense mean '
        f'between: {times(gain)} times as fast, with nothing compressed.'
    )


def _shard(plan: Plan) -> str:
    return f'Shard the model over more devices (`--{"gpus-per-link" if plan.fsdp else "fsdp"}`).'


def _start(
    plan: Plan,
    plain: Sequence[Prediction],
    chosen: Prediction,
    worth: Sequence[Prediction],
    optimizer: Optimizer | None,
) -> str:
    """What to start with, and what else is worth it."""
    base = _fastest(plain)
    known = [each for each in worth if each.family != chosen.family and plan.params <= TRAINED[each.family]]
    faster = [each for each in known if each.seconds < NEAR * chosen.seconds]
    also = [each for each in known if NEAR * each.seconds <= chosen.seconds and each not in faster]
    share = f'whose communication is {_share(plan, base):.0f} % of a step'
    why = share if base.sent else 'which is faster than dense training between workers'
    told = [
        f'Start with {chosen.name}: {_faster(chosen, base)}, {why}.',
        _inside_first(plan, base),
        _unless_hidden(plan, plain, chosen, worth),
    ]
    if base.seconds < MISSED * chosen.seconds:
        told.append(
            f'Predictions have been too low by up to {100 * (MISSED - 1):.0f} %, and this gains less: '
            'measure a step of each before you change anything.'
        )
    for how, which in (('Faster', faster), ('Equally fast, within a tenth', also)):
        names = '; '.join(each.name for each in which)
        told.append(f'{how}: {names}. If you already use one, keep it.' if names else '')
    if chosen.family != 'DEF-Q' and plan.params > (largest := TRAINED[chosen.family]):
        told.append(
            f'The largest model known to have been trained with it has {largest / 1e9:g} B parameters.'
        )
    elif chosen.family != 'DEF-Q':
        told += [_beyond(each, base) for each in worth if _faster_unknown(plan, each, chosen)]
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


def _unless_hidden(
    plan: Plan, plain: Sequence[Prediction], chosen: Prediction, worth: Sequence[Prediction]
) -> str:
    """What the advice becomes if part of the all-reduce is hidden, as far as a step can hide it."""
    if plan.overlap is not None:
        return ''
    dense, fastest = _fastest([each for each in plain if each.sent]), _fastest(worth)
    exposed = dense.seconds - plan.step_time
    told = 'This assumes that no communication hides behind the backward pass'
    most = min(plan.step_time, exposed)
    if (hidden := dense.seconds - most) >= WORTH * chosen.seconds:
        still = times(min(hidden, _fastest(plain).seconds) / chosen.seconds)
        told += f'. If all hides that a step has time for, it is still {still} times as fast'
    else:
        first, last = (
            f'{100 * min(most, dense.seconds - WORTH * each.seconds) / exposed:.0f} %'
            for each in (chosen, fastest)
        )
        more = f', others longer, {fastest.name} until {last}' if last != first else ''
        told += f': {chosen.name} pays until {first} hides{more}; beyond {last}, stay dense'
    return f'{told}. `--dense-step` measures it.'


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
            f'The line for AdamW has {low}: a transformer of {DEF_Q_ITSELF["adamw"] / 1e6:g} M parameters, '
            f'one seed, ended {BEHIND[KNOWN]:.2f} nats behind it at {KNOWN} and {BEHIND[low]:g} at {low}.'
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


def _fastest(methods: Sequence[Prediction]) -> Prediction:
    return min(methods, key=lambda each: each.seconds)


def _nearly(methods: Sequence[Prediction]) -> list[Prediction]:
    """Those that are nearly as fast as the fastest, in order."""
    fastest = _fastest(methods).seconds
    return [method for method in methods if NEAR * method.seconds <= fastest]
