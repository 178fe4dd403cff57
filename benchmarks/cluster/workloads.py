"""The models of the benchmark, as far as both frameworks must agree on them."""

NUM_CLASSES = 10
VGG_IMAGE = (32, 32, 3)
# Inputs, hidden layers, outputs: matrix products whose gradients outweigh their computation at small batches.
MLP_SIZES = {'mlp': (1024, 2048, 2048, 2048, 1024), 'mlp_tiny': (64, 256, 256)}
VGG16_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
BATCH = {'vgg16': 8, 'mlp': 16, 'mlp_tiny': 4}
LEARNING_RATE = 1e-3  # nothing is learned here; the numbers must only stay finite, denormals would be slow
