"""A transformer of 128 M parameters on two nodes of eight GPUs, with DEF-Q; not yet run there.

Table:    none; `python -m benchmarks.two_nodes` compares it with dense AdamW, PowerSGD and DiLoCo
Command:  JAX_LOCAL_DEVICE_IDS=0,1,2,3,4,5,6,7 srun --nodes=2 --ntasks-per-node=1 \\
          .venv/bin/python train.py --config=configs/two_nodes.py \\
          --config.dataset=text_folder --config.dataset_options.path=DIR --workdir=/shared/runs/two_nodes
Expected: unknown
Variants: --config.num_workers=2 --config.shards_per_worker=8 (a worker is a node, sharded inside),
          --config.method=diloco --config.every=32, --config.method=sgd (dense)

Under srun, JAX would otherwise take one GPU per node. The rate is AdamW's; 1/16 kept up with it at 10 M
parameters, where 1/64 did not. Every GPU is a worker, so each holds the whole model.
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
    config.ratio = 16
    config.num_workers = 16

    config.task = 'language_modelling'
    config.dataset = 'python_stdlib'
    config.dataset_options = {'context': 1024}
    config.test_examples = 512  # the standard library has fewer than a thousand windows to test on
    config.model = 'transformer_85m'
    config.model_options = {'num_layers': 18}
    config.compute_dtype = 'bfloat16'

    config.batch_size = 256
    config.num_steps = 5000
    config.optimizer = 'adamw'
    config.weight_decay = 0.1
    config.learning_rate = 6e-4
    config.schedule = 'cosine'

    config.eval_every_steps = 250
    config.log_every_steps = 10

    return defaults.override(config, arg)
