"""The parts of the benchmark's models on which both frameworks must agree."""

NUM_CLASSES = 10
VGG_IMAGE = (32, 32, 3)
# Inputs, hidden layers, outputs. At small batches, sending the gradients costs more than computing them.
MLP_SIZES = {
    'mlp': (1024, 2048, 2048, 2048, 1024),
    'mlp_deep': (1024,) * 13,
    'mlp_tiny': (64, 256, 256),
}
VGG16_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
BATCH = {'vgg16': 8, 'mlp': 16, 'mlp_tiny': 4}
LEARNING_RATE = 1e-3  # nothing is learned; values only have to stay finite and normal (denormals are slow)
