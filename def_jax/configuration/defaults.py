"""Every key of a training configuration, what it means, and its default."""

import ml_collections

__all__ = ['get_defaults']


def get_defaults() -> ml_collections.ConfigDict:
    """A complete configuration, for a get_config to change: DEF at ratio 64 on scikit-learn's digits.

    Returns:
        A new configuration, which `arguments.override` locks. `rules.FIELDS` says what each key may
        hold.

    >>> config = get_defaults()
    >>> config.method, config.ratio, config.num_workers
    ('def', 64.0, 16)
    """
    config = ml_collections.ConfigDict()

    # Method. One element in `ratio` is sent: by granularity a block of every tensor, one of the whole model,
    # or random elements (tensor, model, element). Blocks are drawn independently, as in the paper, or each is
    # sent once a round (random, shuffled, cyclic); every tensor sends the same share, or small ones a larger
    # (proportional, balanced). `detach` is λ where the method leaves it free.
    config.method = 'def'
    config.ratio = 64.0
    config.granularity = 'tensor'
    config.order = 'random'
    config.allocation = 'proportional'
    config.detach = 0.3
    config.auto_detach = False  # estimate λ*(t) from the messages and use it in place of `detach`
    config.every = 1  # steps per message; in between, workers take local steps
    config.decay = 1.0  # the residual is multiplied by it at every step
    config.average_every = 0  # SAEF's period P: steps between two averages of the residuals; 0 is never
    config.wire_dtype = 'float32'  # of the message: float32, bfloat16, float16
    config.skip_nonfinite = False  # all workers skip a step in which any update is NaN or infinite

    # Workers. Each has a device, or shares one with others (virtual workers: same trajectory, fewer
    # devices). With fake_devices the devices are simulated on this CPU.
    config.num_workers = 16
    config.workers_per_device = 1
    config.fake_devices = False

    # Data and model. data_dir is where TFDS keeps data sets; empty is TFDS's own default. train_images and
    # test_images limit a split to its first images; 0 is all.
    config.dataset = 'digits'
    config.data_dir = ''
    config.train_images = 0
    config.test_images = 0
    config.model = 'vgg_digits'
    config.compute_dtype = 'float32'  # of the network: float32, bfloat16; parameters stay float32

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
    config.recalibrate_batches = 0  # training batches that recalibrate BatchNorm before each evaluation
    config.diagnostics_every = 0  # steps between two measurements of def_jax.diagnostics; 0 is never
    config.check_replicas_every = 0  # steps between two comparisons of the workers' copies; 0 is never
    config.keep_checkpoints = 2

    return config
