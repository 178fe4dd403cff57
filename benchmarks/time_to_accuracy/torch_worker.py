"""One PyTorch worker of a run: DistributedDataParallel over gloo, dense or with its own hooks."""

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from benchmarks.cluster import timing
from benchmarks.cluster.torch_worker import data_parallel, start
from benchmarks.time_to_accuracy.workload import FEATURES, HIDDEN, NUM_CLASSES, learning_rates, patches, train


def make_model(num_patches: int, patch_size: int) -> nn.Module:
    """The network of jax_worker, with initial weights of the same distribution."""
    torch.manual_seed(0)
    layers, inputs = [nn.Linear(patch_size, FEATURES), nn.ReLU(), nn.Flatten()], num_patches * FEATURES
    for width in HIDDEN:
        layers += [nn.Linear(inputs, width), nn.ReLU()]
        inputs = width
    model = nn.Sequential(*layers, nn.Linear(inputs, NUM_CLASSES))
    for layer in (module for module in model if isinstance(module, nn.Linear)):
        nn.init.normal_(layer.weight, std=(2 / layer.in_features) ** 0.5)
        nn.init.zeros_(layer.bias)
    nn.init.normal_(model[-1].weight, std=0.01)
    return model


def main() -> None:
    job = timing.read_job()
    start(job)
    data, share = np.load(job['data']), slice(job['worker'], None, job['num_workers'])
    test_inputs = torch.from_numpy(patches(data['test_images'][share]))
    test_labels = torch.from_numpy(data['test_labels'][share]).long()
    model = data_parallel(make_model(*test_inputs.shape[1:]), job['variant'])
    optimizer = torch.optim.SGD(model.parameters(), job['learning_rate'], momentum=0.9)
    loss_fn, rates = nn.CrossEntropyLoss(), learning_rates(job)

    def step(inputs, labels, index):
        optimizer.param_groups[0]['lr'] = float(rates[index])
        optimizer.zero_grad(set_to_none=False)
        loss_fn(model(torch.from_numpy(inputs)), torch.from_numpy(labels).long()).backward()
        optimizer.step()

    def evaluate():
        with torch.no_grad():
            correct = (model.module(test_inputs).argmax(dim=-1) == test_labels).sum().double()
        dist.all_reduce(correct)
        return {'x': 100 * float(correct) / len(data['test_labels'])}

    found = train(job, step, evaluate)
    count = sum(parameter.numel() for parameter in model.parameters())
    timing.write_report(job, found | {'params': count, 'version': torch.__version__})
    dist.destroy_process_group()


if __name__ == '__main__':
    main()
