"""The trainer: from a config to a run's metrics, checkpoints and report."""

import os
from typing import Any

__all__ = ['load']


def load(folder: str | os.PathLike, point: str = 'y') -> tuple[dict[str, Any], Any]:
    """The trained model of a run that has ended, on this process's first device.

    Nothing of the run is needed but that file in its folder: neither its devices nor its data.

    Args:
        folder: the run's `--workdir`, with `x.safetensors` and `y.safetensors`.
        point: 'y', DEF's answer, or 'x', DEF-A's, which every method has.

    Returns:
        The variables, nested dicts of arrays: 'params', and 'batch_stats' if the model has BatchNorm, as the
        run evaluated them. And the model that the configuration names, e.g. a Flax module, for
        `model.apply(variables, images, train=False)`.

    Warns:
        UserWarning: if the run has been prolonged since, and has not come to its end.

    Raises:
        FileNotFoundError: if the folder has no trained model.
        ValueError: if the run has no such point, a file is damaged, or the model cannot be imported.
    """
    from def_jax.trainer import trained  # on use: the programs of the trainer start faster without it

    return trained.load(folder, point)
