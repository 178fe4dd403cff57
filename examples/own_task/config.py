"""DEF on a task of our own. Nothing is downloaded, and it takes seconds.

Command:  python train.py --config=examples/own_task/config.py --workdir=runs/diabetes
Expected: an R² of 0.35 on the test patients, at x and at y; linear regression has 0.34.
Variants: --config.optimizer=adamw --config.learning_rate=0.01, --config.model_options.width=64, ...
"""

from def_jax.trainer.configuration import defaults


def get_config(arg=None):
    config = defaults.get_defaults()

    config.task = 'examples.own_task.diabetes:regression'
    config.dataset = 'examples.own_task.diabetes:diabetes'
    config.model = 'examples.own_task.diabetes:perceptron'
    config.model_options = {'width': 16}

    config.method = 'def'
    config.ratio = 8
    config.num_workers = 4
    config.fake_devices = True

    config.batch_size = 32
    config.num_epochs = 30
    config.learning_rate = 0.005
    config.weight_decay = 0.01
    config.eval_every_epochs = 5
    config.log_every_steps = 10

    return defaults.override(config, arg)
