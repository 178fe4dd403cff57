"""Every key of a training configuration, with its meaning and default."""

import ml_collections

__all__ = ['get_defaults']


def get_defaults() -> ml_collections.ConfigDict:
    """A complete configuration for get_config functions to modify: DEF at ratio 64 on scikit-learn's digits.

    Returns:
        A new configuration, which `arguments.override` locks. `rules.FIELDS` defines the allowed values.

    >>> config = get_defaults()
    >>> config.method, config.ratio, config.num_workers
    ('def', 64.0, 16)
    """
    config = ml_collections.ConfigDict()
    for set_section in (_set_method, _set_workers, _set_parts, _set_optimization, _set_output):
        set_section(config)
    return config


def _set_method(config: ml_collections.ConfigDict) -> None:
    # Method. One element in `ratio` is sent. granularity: a block of every tensor (tensor), one block of the
    # whole model (model) or random elements (element). order: blocks are drawn independently, as in the paper
    # (random), or each is sent once per round (shuffled, cyclic). allocation: every tensor sends the same
    # share (proportional), or small ones send more (balanced). detach is λ, if the method leaves it free.
    config.method = 'def'
    config.ratio = 64.0
    config.granularity = 'tensor'
    config.order = 'random'
    config.allocation = 'proportional'
    config.detach = 0.3
    config.auto_detach = False  # estimate λ*(t) from the messages and use it instead of `detach`
    config.every = 1  # steps per message; workers take local steps in between
    config.decay = 1.0  # multiplies the residual at every step
    config.average_every = 0  # SAEF's period P: steps between averages of the residuals; 0 means never
    config.outer = ''  # optimizer that applies the mean message: empty to add it, else as `optimizer` below
    config.outer_options = {}  # of `outer`, e.g. learning_rate and momentum
    config.wire_dtype = 'float32'  # dtype of the message: float32, bfloat16, float16, int8
    config.rank = 0  # of PowerSGD's factors; 0 for the largest that sends no more than `ratio` allows
    config.chunk = 64  # the longest edge of a chunk that DeMo transforms
    config.freeze_after = 100  # dense steps of 1-bit Adam, after which its second moment is frozen
    config.skip_nonfinite = False  # all workers skip a step in which any update is NaN or infinite


def _set_workers(config: ml_collections.ConfigDict) -> None:
    # Workers. Each has its own device or shares one (virtual workers: same trajectory, fewer devices).
    # sequential_workers computes the gradients of a device's virtual workers one after another: convolutions
    # stay ordinary instead of grouped. With shards_per_worker above 1, a worker is that many devices, which
    # divide its matrices and its examples among them (FSDP). fake_devices simulates the devices on this CPU.
    config.num_workers = 16
    config.workers_per_device = 1
    config.shards_per_worker = 1
    config.sequential_workers = False
    config.fake_devices = False


def _set_parts(config: ml_collections.ConfigDict) -> None:
    # Task, data set and model, each by name or by import path, my_package.my_module:factory. The arguments
    # of a factory are in its …_options, e.g. --config.dataset_options.folder=images. data_dir is where TFDS
    # stores data sets; empty for TFDS's default. train_examples and test_examples limit a split to its first
    # examples; 0 means all. validation_examples holds out the last training examples; 0 keeps the validation
    # split of data sets that have one.
    config.task = 'image_classification'
    config.task_options = {}
    config.dataset = 'digits'
    config.dataset_options = {}
    config.data_dir = ''
    config.train_examples = 0
    config.validation_examples = 0
    config.test_examples = 0
    config.model = 'vgg_digits'
    config.model_options = {}
    config.compute_dtype = 'float32'  # dtype of the network: float32, bfloat16; parameters stay float32


def _set_optimization(config: ml_collections.ConfigDict) -> None:
    # Optimization. batch_size is the global batch size, over all workers; each worker takes the gradient of
    # its share in `accumulate` equal parts, which saves memory. optimizer: sgd, adamw, lion, muon or an
    # import path. schedule: drops, cosine (after a warm-up), wsd (warm-up, stable, decay) or an import path.
    # weight_decay is the L2 penalty of sgd, and decoupled in the others.
    config.batch_size = 128
    config.accumulate = 1
    config.num_epochs = 280
    config.num_steps = 0  # the run's length in steps; 0 means num_epochs
    config.learning_rate = 0.1
    config.schedule = 'drops'
    config.schedule_options = {}
    config.learning_rate_drops = (0.5, 0.75)  # of drops: fractions of the run; the rate drops tenfold at each
    config.optimizer = 'sgd'
    config.optimizer_options = {}
    config.momentum = 0.9  # of sgd; other optimizers have it among their options
    config.weight_decay = 5e-4
    config.seed = 0


def _set_output(config: ml_collections.ConfigDict) -> None:
    # Output. A checkpoint is written at every evaluation, which is on the split evaluate_on: test, or
    # validation, for every choice that is made by comparing runs.
    config.eval_every_epochs = 20
    config.eval_every_steps = 0  # 0 means eval_every_epochs
    config.evaluate_on = 'test'
    config.log_every_steps = 20
    config.evaluate_train_examples = 0  # first training examples on which x and y are evaluated, too
    config.recalibrate_batches = 0  # training batches that recalibrate BatchNorm before each evaluation
    config.diagnostics_every = 0  # steps between measurements of def_jax.diagnostics; 0 means never
    config.check_replicas_every = 0  # steps between comparisons of the workers' copies; 0 means never
    config.keep_checkpoints = 2
