"""DEF on scikit-learn's digits: the default run. Nothing is downloaded, 2 CPU cores suffice.

Table:    none of the paper's; a small stand-in for its Table 1 (VGG on CIFAR-10, 16 workers).
Command:  python train.py --config=configs/digits.py --workdir=runs/digits
Expected: test accuracy of x and y at least 98 % at ratio 64 (uncompressed SGD: about 99 %).
Variants: --config.method=sgd (uncompressed), --config.method=ef (diverges), --config.ratio=256, ...
"""

import ml_collections

from configs import arguments


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The complete configuration; every key that train.py reads is here.

    Args:
        arg: settings, e.g. 'method=ef,ratio=256': --config=configs/digits.py:method=ef,ratio=256.
    """
    config = ml_collections.ConfigDict()

    # Method. One element in `ratio` is sent: by granularity a block of every tensor, one of the whole model,
    # or random elements (tensor, model, element). Blocks are drawn independently, as in the paper, or each is
    # sent once a round (random, shuffled, cyclic); every tensor sends the same share, or small ones a larger
    # (proportional, balanced). `detach` is λ where the method leaves it free.
    config.method = 'def'
    config.ratio = 64
    config.granularity = 'tensor'
    config.order = 'random'
    config.allocation = 'proportional'
    config.detach = 0.3
    config.auto_detach = False  # λ*(t), estimated from the messages, in place of `detach`
    config.every = 1  # steps for each message
    config.decay = 1.0  # of the residual, a step
    config.average_every = 0
    config.wire_dtype = 'float32'  # what travels: float32, bfloat16, float16
    config.skip_nonfinite = False  # leave out a step in which an update is NaN or infinite, on all workers

    # Workers. Each is a device, or shares one with others (virtual workers: same trajectory, fewer
    # devices). With fake_devices the devices are simulated on this CPU.
    config.num_workers = 16
    config.workers_per_device = 1
    config.fake_devices = True

    # Data and model. data_dir is where TFDS keeps data sets; empty means TFDS's own default. A number of
    # images takes only the first so many of a split; 0 takes all.
    config.dataset = 'digits'
    config.data_dir = ''
    config.train_images = 0
    config.test_images = 0
    config.model = 'vgg_digits'

    # Optimization. batch_size counts the images of all workers together.
    config.batch_size = 128
    config.num_epochs = 280
    config.learning_rate = 0.1
    config.learning_rate_drops = (0.5, 0.75)  # shares of the run after which the rate falls to a tenth
    config.momentum = 0.9
    config.weight_decay = 5e-4
    config.seed = 0

    # Output. A checkpoint is written at every evaluation.
    config.eval_every_epochs = 20
    config.log_every_steps = 20
    config.recalibrate_batches = 0  # of training images, for new BatchNorm statistics before an evaluation
    config.diagnostics_every = 0  # steps between two measurements of def_jax.diagnostics; 0 is never
    config.check_replicas_every = 0  # steps between two comparisons of the workers' copies; 0 is never
    config.keep_checkpoints = 2

    return arguments.override(config, arg)
