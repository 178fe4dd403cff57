"""The paper's ImageNet configuration takes real steps: ResNet-50, 224×224, streamed, virtual workers."""

import dataclasses
import json
from unittest import mock

import numpy as np
import pytest
import rich.console
import tensorflow_datasets as tfds
from mocked_records import OneByOne

from configs import imagenet
from def_jax.trainer import experiment, loop
from def_jax.trainer.data import streaming

SETTINGS = (
    'num_workers=2,workers_per_device=2,batch_size=4,train_examples=8,test_examples=3,'
    'num_epochs=1,log_every_steps=1,fake_devices=true'
)


@pytest.mark.slow
def test_resnet50_steps_on_mock_data_with_virtual_workers(tmp_path):
    open_dataset = streaming.open_dataset

    def open_mocked(*args):
        return [dataclasses.replace(split, records=OneByOne(split.records)) for split in open_dataset(*args)]

    with (
        tfds.testing.mock_data(num_examples=8),
        mock.patch.object(tfds.core.DatasetBuilder, 'is_prepared', lambda self: True),
        mock.patch.object(streaming, 'open_dataset', open_mocked),
        mock.patch.object(experiment, 'EXAMPLES_PER_DEVICE', 2),
    ):
        config = imagenet.get_config(SETTINGS)
        result = loop.train_and_evaluate(config, tmp_path / 'run', rich.console.Console(quiet=True))

    assert result['status'] == 'finished' and result['metrics']['steps'] == 2
    assert result['communication']['num_params'] == 25_557_032
    assert result['communication']['true_ratio'] == pytest.approx(64, rel=1e-3)
    records = [json.loads(line) for line in (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()]
    losses = [record['loss'] for record in records if 'loss' in record]
    assert len(losses) == 2 and np.isfinite(losses).all()
    # 3 test images: every one counts once.
    for point in ('x', 'y'):
        assert (3 * result['metrics'][f'test_accuracy_{point}']) % 1 == pytest.approx(0, abs=1e-6)
