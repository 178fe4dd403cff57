"""One worker of PyTorch's PowerSGD hook on given gradients: python torch_powersgd.py FOLDER RANK.

FOLDER/grads.npz has a tensor's gradients [steps, workers, ...] under its name; worker 0 writes the hook's
first Q of every matrix and what it applies, [steps, ...], to FOLDER/updates.npz.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook


class Bucket:
    """The gradients of one step, as DistributedDataParallel hands them to a hook."""

    def __init__(self, tensors: list[torch.Tensor]):
        self._flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        parts = self._flat.split([tensor.numel() for tensor in tensors])
        self._parts = [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]

    def buffer(self):
        return self._flat

    def gradients(self):
        return self._parts

    def index(self):
        return 0

    def is_last(self):
        return True


def main(folder: Path, worker: int, rank: int = 2) -> None:
    grads = dict(np.load(folder / 'grads.npz'))
    steps, workers = next(iter(grads.values())).shape[:2]
    dist.init_process_group('gloo', f'file://{folder}/meeting', rank=worker, world_size=workers)
    state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=rank, start_powerSGD_iter=2)
    state.iter = 2  # its dense steps are over
    torch.manual_seed(np.random.RandomState(0).randint(1_000_000_000))  # as the hook draws them
    found = {f'q_{n}': torch.randn(g.shape[-1], rank).numpy() for n, g in grads.items() if g.ndim == 4}
    updates = []
    for step in range(steps):
        bucket = Bucket([torch.tensor(g[step, worker]) for g in grads.values()])
        powerSGD_hook.powerSGD_hook(state, bucket).wait()
        updates.append([part.numpy().copy() for part in bucket.gradients()])
    if worker == 0:
        found |= {
            name: np.stack(of_steps) for name, of_steps in zip(grads, zip(*updates, strict=True), strict=True)
        }
        np.savez(folder / 'updates.npz', **found)
    dist.barrier()


if __name__ == '__main__':
    main(Path(sys.argv[1]), int(sys.argv[2]))
