"""One fault after another is planted in a copy of the project, and the test that should notice it must fail.

    python tests/faults/mutations.py                        # all of them
    python tests/faults/mutations.py 3 17                   # two of them

Writes the table of tests/MUTATIONS.md to standard output. Exit code 1 if a fault went unnoticed.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
COPIED = ('def_jax', 'configs', 'tests', 'benchmarks', 'train.py', 'pyproject.toml')


class Mutation(NamedTuple):
    fault: str
    code: str  # must be in one file, once
    mutated: str
    test: str


MUTATIONS = [
    Mutation(
        'what was left behind is forgotten (line 7)',
        'beyond.pend(updates, carried)  # line 7',
        'optax.tree.cast(updates, jnp.float32)  # line 7',
        'test_error_feedback.py::test_vmap_equals_oracle[tensor-64-4-0]',
    ),
    Mutation(
        'the gradient is taken on the other side of x (line 6)',
        'scale=state.detach)',
        'scale=-state.detach)',
        'test_error_feedback.py::test_detached_point_and_its_gradient[0.5]',
    ),
    Mutation(
        'the residual of the detached point takes a gradient',
        'lax.stop_gradient(_arrange_like(params, state.residual))',
        '_arrange_like(params, state.residual)',
        'test_error_feedback.py::test_detached_point_and_its_gradient[0.5]',
    ),
    Mutation(
        'y has its own residual in place of the mean (line 13)',
        'pmean(_arrange_like(params, state.residual), axis_name), scale=1)',
        '_arrange_like(params, state.residual), scale=1)',
        'test_error_feedback.py::test_output_moves_by_the_mean_update[nesterov]',
    ),
    Mutation(
        'the message is one element longer than it need be',
        'pmean(options.wire.pack(message, step), axis_name)',
        'pmean(jnp.append(options.wire.pack(message, step), 0), axis_name)[:-1]',
        'test_hlo.py::test_one_all_reduce_of_the_message[tensor-8-64]',
    ),
    Mutation(
        'what rounding takes from a narrow message is lost',
        'rest=block - message[: block.size]',
        'rest=jnp.zeros_like(block)',
        'beyond/test_wire_dtype.py::test_sent_and_kept_restore_what_was_pending_bit_for_bit',
    ),
    Mutation(
        'minus infinity counts as finite',
        'jnp.abs(leaf.astype(jnp.float32))',
        'leaf.astype(jnp.float32)',
        'beyond/test_skipping.py::test_wherever_it_sits_all_workers_skip_and_hold_everything',
    ),
    Mutation(
        'the last place of a block is never drawn, in rounds',
        '_draw(key, [leaves, 0], counts)',
        '_draw(key, [leaves, 0], counts - 1)',
        'compressors/test_draws.py::test_every_place_is_equally_likely_at_every_step',
    ),
    Mutation(
        'all tensors share one draw',
        '_draw(key, [step, leaves], counts)',
        '_draw(key, [step, 0 * leaves], counts)',
        'compressors/test_draws.py::test_no_two_draws_share_a_key[random-2]',
    ),
    Mutation(
        'too few swaps: some orders of blocks are preferred',
        '_SWAPS = 16',
        '_SWAPS = 4',
        'compressors/test_draws.py::test_all_permutations_of_four_blocks_are_equally_likely',
    ),
    Mutation(
        'the elements of a longer or a shorter stretch are not drawn alike',
        'inside = inside & (index < edge)',
        'inside = inside & (index >= 0)',
        'compressors/test_compressors.py::test_energy_of_elements_is_unbiased',
    ),
    Mutation(
        "the residual's age in shuffled rounds is taken for that in cyclic ones",
        '(3 / 7, 7 / 12)',
        '(3 / 7, 1 / 2)',
        'compressors/test_orders.py::test_ages_of_the_residual_as_shares_of_those_of_the_block_that_is_sent',
    ),
    Mutation(
        'the variance between workers is biased',
        'variance = workers / (workers - 1) * (',
        'variance = 1.0 * (',
        'test_diagnostics.py::test_gradient_statistics_are_unbiased',
    ),
    Mutation(
        'EF21 does not start from the first gradient',
        'lax.cond(state.step == 0, first, later)',
        'lax.cond(state.step < 0, first, later)',
        'test_methods.py::test_the_answer_of_a_method_equals_its_oracle[ef21-4-tensor-0]',
    ),
    Mutation(
        'a checksum does not see where a number lies',
        'jnp.sum(words * odd, dtype=jnp.uint32)',
        'jnp.sum(words, dtype=jnp.uint32)',
        'mesh/test_replication.py::test_checksums_see_bits_places_and_keys',
    ),
    Mutation(
        'the crops at the far border are never made',
        '(len(images), 2), 0, 2 * padding + 1)',
        '(len(images), 2), 0, 2 * padding)',
        'trainer/data/test_augmentation.py::test_augment_makes_every_crop_and_flip',
    ),
    Mutation(
        'crops of ImageNet never show the whole image',
        '(0.08 + 0.92 * uniform',
        '(0.08 + 0.8 * uniform',
        'trainer/data/test_streaming.py::test_random_boxes_are_torchvisions',
    ),
    Mutation(
        'all workers of the trainer augment alike',
        'return jax.random.fold_in(key, lax.axis_index(axis_name))',
        'return key',
        'trainer/test_steps.py::test_three_steps_equal_a_loop_over_the_library',
    ),
    Mutation(
        'the trainer takes weight decay at x',
        'optimizer.update(grads, state.opt_state, point, shards=shards)',
        'optimizer.update(grads, state.opt_state, state.params, shards=shards)',
        'trainer/test_steps.py::test_gradient_and_weight_decay_are_taken_at_the_detached_point[0]',
    ),
    Mutation(
        'a resumed run starts with the first batches again',
        'experiment.train_batches(self._start)',
        'experiment.train_batches(0)',
        'trainer/checkpointing/test_checkpoints.py::test_interrupted_at_any_moment_equals_uninterrupted',
    ),
    Mutation(
        'a manifest that was changed is believed',
        "if content.pop('checksum') != _checksum_of(content):",
        "if content.pop('checksum') is None:",
        'trainer/checkpointing/test_damage.py::test_no_bit_of_the_manifest_can_change_unseen',
    ),
    Mutation(
        'other workers go on with the residual of the first',
        'mean = x.mean(tuple(range(len(before))), dtype=wide).astype(x.dtype)',
        'mean = x[(0,) * len(before)]',
        'trainer/checkpointing/test_regrouping.py::test_the_state_is_that_of_the_mean_worker',
    ),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('numbers', type=int, nargs='*', help='from 1; all if none is given')
    arguments = parser.parse_args()
    unnoticed = 0
    print('| | fault | file | test |\n|' + ' --- |' * 4)
    for number in arguments.numbers or range(1, len(MUTATIONS) + 1):
        mutation = MUTATIONS[number - 1]
        noticed, file = is_noticed(mutation)
        unnoticed += not noticed
        cells = (number, mutation.fault, f'`{file}`', f'`{mutation.test}`')
        print(f'| {" | ".join(map(str, cells))} |' + ('' if noticed else ' NOT NOTICED'), flush=True)
    return int(unnoticed > 0)


def is_noticed(mutation: Mutation) -> tuple[bool, Path]:
    """Whether the test fails in a copy of the project that has the fault, and the file that has it."""
    with tempfile.TemporaryDirectory() as folder:
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, Path(folder, name))
            else:
                shutil.copy(ROOT / name, folder)
        file = plant(mutation, Path(folder, 'def_jax')).relative_to(folder)
        command = [sys.executable, '-m', 'pytest', '-qx', '-p', 'no:cacheprovider', f'tests/{mutation.test}']
        # A checkout that is installed in place must not be found in its stead.
        environment = os.environ | {'PYTHONPATH': folder, 'PYTHONDONTWRITEBYTECODE': '1'}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise SystemExit(done.stdout + done.stderr)
    return done.returncode == 1 and 'failed' in done.stdout.splitlines()[-1], file


def plant(mutation: Mutation, folder: Path) -> Path:
    """Changes the one place of the code below `folder` that the mutation is about."""
    files = [path for path in folder.rglob('*.py') if mutation.code in path.read_text()]
    if len(files) != 1 or files[0].read_text().count(mutation.code) != 1:
        raise SystemExit(f'{mutation.code!r} must be in one file, once; it is in {[*map(str, files)]}')
    files[0].write_text(files[0].read_text().replace(mutation.code, mutation.mutated))
    return files[0]


if __name__ == '__main__':
    sys.exit(main())
