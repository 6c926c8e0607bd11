"""The look at the watched cases equals a plain loop over them, case by case."""

from pathlib import Path

import pytest
import torch

from mvl.core.config import Config, build
from mvl.datasets import registry, splits
from mvl.datasets.case_store import CaseStore
from mvl.datasets.task_data import TaskData
from mvl.training.loop import Trainer
from mvl.training.objective import foreground_dice
from mvl.training.validation import Validation

TINY = {
    "data": {"img_size": [16, 16, 16]},
    "model": {"encoder_layers": 1, "decoder_layers": 1, "hidden_size": 16, "mlp_dim": 32},
}


def test_mean_loss_and_dice_are_those_of_a_plain_loop(tmp_path: Path) -> None:
    config, task = build(Config, TINY, "test"), registry.find_task("phantoms")
    store = CaseStore(
        TaskData(task), splits.load_split(TaskData(task), 0, 0.1).train[:3], config.data
    )
    trainer = Trainer(config, store, store, tmp_path, "")
    validation = Validation(store, config, trainer.loss, trainer.accelerator)
    trainer.network.train()
    found = validation.mean_loss_and_dice(trainer.network)
    assert not trainer.network.training, "validated in evaluation mode"
    losses, dices = [], []
    with torch.no_grad():
        for index in range(3):
            image, label = store.get(index)
            logits = trainer.network(image[None])
            losses.append(float(trainer.loss(logits, label[None].float())))
            dices.append(float(foreground_dice(logits, label[None])))
    assert found == pytest.approx((sum(losses) / 3, sum(dices) / 3), rel=1e-5)
