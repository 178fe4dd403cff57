"""Checkpoints of the whole state: every worker's residual, momentum and BatchNorm statistics.

The data position needs no record of its own: batches, permutations and augmentation are functions of
the step and the seed.
"""

from pathlib import Path

import jax
import orbax.checkpoint as ocp

from def_jax.training.steps import TrainState

__all__ = ['Checkpoints']


class Checkpoints:
    """The checkpoints of one run, written by orbax; the newest `keep` stay."""

    def __init__(self, workdir: Path, keep: int):
        self._folder = workdir / 'checkpoints'
        options = ocp.CheckpointManagerOptions(max_to_keep=keep)
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    @property
    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState) -> None:
        """Writes the state. Complete when the next save starts, or on `close`."""
        step = int(state.step)
        if step != self.latest_step:
            self._manager.save(step, args=ocp.args.StandardSave(state))

    def restore(self, like: TrainState) -> TrainState:
        """The newest checkpoint.

        Args:
            like: a state of the same experiment; gives shapes, dtypes and placement.

        Returns:
            The state, on the devices of `like`, bit for bit as it was saved; `like` if there is none.

        Raises:
            ValueError: if the checkpoint cannot be read as a state of this experiment.
        """
        step = self.latest_step
        if step is None:
            return like
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        try:
            return self._manager.restore(step, args=ocp.args.StandardRestore(target))
        except Exception as error:  # orbax and tensorstore raise many types for a damaged file
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ValueError(
                f'checkpoint {self._folder / str(step)} cannot be read ({reason}). Delete that folder to '
                'resume from the one before it, or choose another --workdir to start anew.'
            ) from error

    def close(self) -> None:
        """Waits for the last save and frees the manager."""
        self._manager.wait_until_finished()
        self._manager.close()
