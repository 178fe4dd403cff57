"""The shapes of real networks' parameters, for tests of what depends on shapes alone."""

import itertools


def vgg16():
    """The authors' for CIFAR-10: convolutions and dense layers with biases, each convolution normalised."""
    widths = [3, *[64] * 2, *[128] * 2, *[256] * 3, *[512] * 6]
    kernels = [(3, 3, *pair) for pair in itertools.pairwise(widths)]
    dense = [(512, 512), (512, 512), (512, 10)]
    return [*kernels, *[(width,) for width in widths[1:]] * 3, *dense, *((shape[1],) for shape in dense)]


def transformer(width=768, vocabulary=50_257, layers=12):
    matrices = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
    layer = [*matrices, *((shape[1],) for shape in matrices), *[(width,)] * 4]
    return [(vocabulary, width), (1024, width), *layer * layers, (width,), (width,)]


REAL = {'vgg16': vgg16(), 'transformer': transformer()}
