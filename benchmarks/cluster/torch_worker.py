"""One PyTorch worker: DistributedDataParallel over gloo, dense and with its own compression hooks."""

import itertools
import os

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from benchmarks.cluster import timing
from benchmarks.cluster.workloads import LEARNING_RATE, MLP_SIZES, NUM_CLASSES, VGG16_STAGES, VGG_IMAGE


def make_model(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == 'vgg16':
        layers, channels = [], VGG_IMAGE[-1]
        for stage in VGG16_STAGES:
            for width in stage:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels, NUM_CLASSES))
    sizes = MLP_SIZES[name]
    layers = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def make_batch(job: dict) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(job['worker'])
    height, width, channels = VGG_IMAGE
    shape = (channels, height, width) if job['model'] == 'vgg16' else MLP_SIZES[job['model']][:1]
    inputs = torch.randn(job['batch'], *shape, generator=generator)
    return inputs, torch.randint(0, NUM_CLASSES, (job['batch'],), generator=generator)


def start(job: dict) -> None:
    """Connects this process to the other workers by gloo."""
    torch.set_num_threads(1)
    os.environ.setdefault('USE_LIBUV', '0')  # Debian builds PyTorch without it
    dist.init_process_group(
        'gloo', init_method=f'tcp://{job["address"]}', rank=job['worker'], world_size=job['num_workers']
    )


def data_parallel(model: nn.Module, name: str) -> DistributedDataParallel:
    """The model under DDP: 'ddp', 'ddp_fp16' or 'ddp_powersgd'."""
    # Under gloo, PowerSGD's callbacks deadlock if there are several buckets, so use a single one.
    bucket = {'bucket_cap_mb': 10_000} if name == 'ddp_powersgd' else {}
    model = DistributedDataParallel(model, **bucket)
    if name == 'ddp_fp16':
        model.register_comm_hook(None, default_hooks.fp16_compress_hook)
    if name == 'ddp_powersgd':
        # Rank 4, as its authors use for accuracy; the first steps are dense.
        state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=4, start_powerSGD_iter=2)
        model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    return model


def make_step(name: str, job: dict, batch: tuple[torch.Tensor, torch.Tensor]):
    """One of 'compute', 'local_sgd', 'ddp', 'ddp_fp16', 'ddp_powersgd'."""
    model = make_model(job['model'])
    if name.startswith('ddp'):
        model = data_parallel(model, name)
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, momentum=0.9)
    loss_fn, (inputs, labels) = nn.CrossEntropyLoss(), batch

    def step() -> None:
        optimizer.zero_grad(set_to_none=False)
        loss_fn(model(inputs), labels).backward()
        if name != 'compute':
            optimizer.step()

    return step


def main() -> None:
    job = timing.read_job()
    start(job)
    batch = make_batch(job)
    found = timing.measure({name: make_step(name, job, batch) for name in job['variants']}, dist.barrier, job)
    count = sum(parameter.numel() for parameter in make_model(job['model']).parameters())
    timing.write_report(job, {'variants': found, 'params': count, 'version': torch.__version__})
    dist.destroy_process_group()


if __name__ == '__main__':
    main()
