"""A small transformer on the source of Python's standard library: nothing is downloaded, 2 cores suffice.

Table:    none; DEF-Q with AdamW inside, `def_adamw` at 1/64 of the bytes, 8 workers of 4 sequences
Command:  make train CONFIG=language, or python train.py --config=configs/language.py --workdir=runs/language
Expected: test loss of x and y about 1.35 nats per byte (1.94 bits), a sampled text; about 4 minutes
Variants: --config.method=sgd (dense AdamW at the same learning rate),
          --config.dataset=tiny_shakespeare (needs a network once),
          --config.model=transformer_11m --config.ratio=16 --config.learning_rate=0.0008 (falls with size),
          --config.dataset_options.context=256 --config.model_options.context=256 --config.test_examples=1024
          (longer sequences, of which the test split has fewer), --config.model_options.remat=True, ...
          --config.num_workers=2 --config.shards_per_worker=4 (workers of four devices, sharded inside)

--config.optimizer=muon, lion and others work as well, with rates of their own.
"""

import ml_collections

from def_jax.trainer.configuration import defaults


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The complete configuration; def_jax/trainer/configuration/defaults.py explains every key.

    Args:
        arg: settings, e.g. 'method=ef,ratio=64'; see above.
    """
    config = defaults.get_defaults()

    config.method = 'def_q'
    config.ratio = 64

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
    config.weight_decay = 0.1
    config.learning_rate = 0.02
    config.schedule = 'cosine'

    config.eval_every_steps = 500
    config.log_every_steps = 20

    return defaults.override(config, arg)
