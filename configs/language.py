"""A small transformer on the source of Python's standard library: nothing is downloaded, 2 cores suffice.

Table:    none; AdamW inside DEF at ratio 16, 8 workers of 4 sequences
Command:  make train CONFIG=language, or python train.py --config=configs/language.py --workdir=runs/language
Expected: test loss of x and y about 1.40 nats per byte (2.02 bits), a sampled text; about 4 minutes
Variants: --config.method=sgd --config.outer= --config.learning_rate=0.016 --config.optimizer_options.b1=0.9
          --config.optimizer_options.b2=0.95 (dense AdamW),
          --config.dataset=tiny_shakespeare (needs a network once), --config.model=transformer_11m
          --config.dataset_options.context=256, --config.model_options.remat=True, ...
          --config.num_workers=2 --config.shards_per_worker=4 (workers of four devices, sharded inside)

The optimizer has no first moment, since the residuals do its work, and a rate above that of dense AdamW; see
docs/how_to/language.md. --config.optimizer=muon, lion and others work as well, with rates of their own.
"""

import ml_collections

from def_jax.trainer.configuration import defaults


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The complete configuration; def_jax/trainer/configuration/defaults.py explains every key.

    Args:
        arg: settings, e.g. 'method=ef,ratio=64'; see above.
    """
    config = defaults.get_defaults()

    config.method = 'def'
    config.ratio = 16
    config.order = 'shuffled'
    config.allocation = 'balanced'
    config.detach = 0.2
    config.outer = 'sgd'
    config.outer_options = {'learning_rate': 0.3, 'momentum': 0.8, 'nesterov': True}

    # On CPUs, fake devices compute plain matrix products, which are faster than the batched ones of virtual
    # workers (workers_per_device).
    config.num_workers = 8
    config.fake_devices = True

    config.task = 'language_modelling'
    config.dataset = 'python_stdlib'
    config.dataset_options = {'context': 64}
    config.test_examples = 4096
    config.model = 'transformer_115k'

    config.batch_size = 32
    config.num_steps = 3000
    config.optimizer = 'adamw'
    config.optimizer_options = {'b1': 0.0, 'b2': 0.995}
    config.weight_decay = 0.1
    config.learning_rate = 0.02
    config.schedule = 'cosine'

    config.eval_every_steps = 500
    config.log_every_steps = 20

    return defaults.override(config, arg)
