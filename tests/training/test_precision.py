"""Each precision runs where the device has it, is refused with a remedy where not, and keeps losses
in float32."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from mvl.core import files
from mvl.core.config import Config, build
from mvl.core.progress import largest_loss_rise
from mvl.datasets import registry, splits
from mvl.datasets.case_store import CaseStore
from mvl.datasets.task_data import TaskData
from mvl.training import failures, loop, precision
from mvl.training.trained import Predictor

CPU = torch.device("cpu")
GPU = torch.device("cuda")
TINY = {
    "data": {"img_size": [16, 16, 16]},
    "train": {"train_epochs": 2, "batch_size": 2},
    "model": {
        "patch_size": [8, 8, 8],
        "encoder_layers": 1,
        "decoder_layers": 1,
        "hidden_size": 32,
        "mlp_dim": 64,
    },
}


def config_of(name: str) -> Config:
    config: Config = build(Config, TINY, "test")
    return replace(config, train=replace(config.train, precision=name))


def trainer_of(name: str, folder: Path, cases: int = 2) -> loop.Trainer:
    config, task = config_of(name), registry.find_task("phantoms")
    store = CaseStore(
        TaskData(task), splits.load_split(TaskData(task), 0, 0.1).train[:cases], config.data
    )
    return loop.Trainer(config, store, store, folder, "")


@pytest.fixture
def bf16_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that says it has bf16 units: others emulate them, with the same types."""
    monkeypatch.setattr(precision, "processor_flags", lambda: frozenset({"avx512_bf16"}))


def test_a_processor_without_bf16_units_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "processor_flags", lambda: frozenset({"avx2", "avx512f"}))
    with pytest.raises(
        files.RunError, match=r"bf16: this processor has no bf16 units.*set it to fp32"
    ):
        precision.check_precision("bf16", CPU)
    for flag in ("avx512_bf16", "amx_bf16"):
        monkeypatch.setattr(precision, "processor_flags", lambda flag=flag: frozenset({flag}))
        precision.check_precision("bf16", CPU)
    precision.check_precision("fp32", CPU)


@pytest.mark.parametrize("name", ["tf32", "fp16"])
def test_what_only_gpus_have_is_refused_on_a_cpu(name: str, tmp_path: Path) -> None:
    with pytest.raises(files.RunError, match=rf"train.precision {name}:.*set it to fp32"):
        trainer_of(name, tmp_path)


def test_an_old_card_is_told_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation: asked.append(including_emulation) or False,
    )
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(files.RunError, match="Tesla T4 emulates bf16; set it to fp16"):
        precision.check_precision("bf16", GPU)
    with pytest.raises(files.RunError, match="Tesla T4 has no tf32"):
        precision.check_precision("tf32", GPU)
    assert asked == [False]
    precision.check_precision("fp16", GPU)


@pytest.mark.parametrize(
    ("name", "on"), [("fp32", False), ("tf32", True), ("bf16", False), ("fp16", False)]
)
def test_both_tf32_flags_follow_the_precision(name: str, on: bool) -> None:
    old = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = not on
        precision.set_flags(name)
        assert precision.facts_of(name) == {"precision": name, "tf32_matmul": on, "tf32_cudnn": on}
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = old


def test_bf16_computes_in_sixteen_bits_and_loses_in_thirty_two(
    bf16_processor: None, tmp_path: Path
) -> None:
    trainer = trainer_of("bf16", tmp_path)
    inside, given, loss = [], [], trainer.loss
    linear = next(m for m in trainer.network.modules() if isinstance(m, nn.Linear))
    linear.register_forward_hook(lambda module, x, out: inside.append(out.dtype))
    trainer.loss = lambda logits, label: (
        given.append((logits.dtype, torch.is_autocast_enabled("cpu"))) or loss(logits, label)
    )
    trainer.train_epoch([], _NoBar())
    trainer.validate()
    assert set(inside) == {torch.bfloat16} and set(given) == {(torch.float32, False)}
    assert {p.dtype for p in trainer.network.parameters()} == {torch.float32}
    image = trainer.train_cases.get(0)[0][None]
    with torch.no_grad():
        assert torch.equal(
            Predictor(trainer.network, trainer.config)(image),
            Predictor(trainer.network, trainer.config)(image),
        )
        assert not torch.equal(
            Predictor(trainer.network, trainer.config)(image),
            Predictor(trainer.network, config_of("fp32"))(image),
        )


class _NoBar:
    def update(self) -> None:
        """Count nothing."""


@pytest.fixture
def fp16_trainer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> loop.Trainer:
    """fp16 on a CPU, which runs pretend to allow: torch's scaler and autocast work there too."""
    monkeypatch.setattr(precision, "check_precision", lambda name, device: None)
    return trainer_of("fp16", tmp_path, cases=6)


def test_an_overflow_skips_the_step_and_is_counted(fp16_trainer: loop.Trainer) -> None:
    trainer, calls, loss = fp16_trainer, [], fp16_trainer.loss
    first, weights = next(trainer.network.parameters()), []

    def overflowing(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        weights.append(first.detach().clone())
        return loss(logits, label) * (math.inf if len(calls) == 2 else 1.0)

    trainer.loss = overflowing
    scale = trainer.scaler.get_scale()
    trainer.train_epoch([], _NoBar())
    assert (
        trainer.progress.skipped == 1
        and len(trainer.progress.losses) == 2
        and trainer.progress.skipped_in_a_row == 0
    )
    assert torch.equal(weights[1], weights[2]) and not torch.equal(weights[0], weights[1])
    assert trainer.scaler.get_scale() == scale / 2
    trainer.save()
    other = loop.Trainer(
        trainer.config, trainer.train_cases, trainer.watched_cases, trainer.folder, ""
    )
    assert other.restore() and other.scaler.get_scale() == scale / 2 and other.progress.skipped == 1


def test_steps_that_never_recover_are_diverged(fp16_trainer: loop.Trainer) -> None:
    loss = fp16_trainer.loss
    fp16_trainer.loss = lambda logits, label: loss(logits, label) * math.inf
    with pytest.raises(failures.Diverged, match=r"epoch \d+, step \d+"):
        for epoch in range(20):
            fp16_trainer.progress.epoch, fp16_trainer.progress.step = epoch, 0
            fp16_trainer.train_epoch([], _NoBar())
    assert 10 < fp16_trainer.progress.skipped <= precision.MAX_SKIPS


def test_losses_read_late_name_their_own_step(tmp_path: Path) -> None:
    """As on a GPU: nothing is read while steps go on; the epoch's end finds the fault, and no
    checkpoint is made of it."""
    trainer, loss, calls = trainer_of("fp32", tmp_path, cases=6), None, []
    loss = trainer.loss
    trainer.loss = lambda logits, label: (
        loss(logits, label) * (math.nan if calls.append(1) is None and len(calls) == 2 else 1.0)
    )
    trainer.feed.device = CPU
    trainer.device = torch.device("meta")  # not a CPU, so that nothing is read at once
    to, trainer.config = torch.Tensor.to, trainer.config
    try:
        torch.Tensor.to = lambda self, *words, **more: (
            self if words and words[0] == trainer.device else to(self, *words, **more)
        )
        trainer.train_epoch([], _NoBar())
    finally:
        torch.Tensor.to = to
    assert len(trainer.unread) == 3 and trainer.progress.losses == []
    with pytest.raises(failures.Diverged, match=r"loss nan.*epoch 0, step 1, cases"):
        trainer.save()
    assert not list(tmp_path.glob("checkpoint-*"))


def test_only_fp32_on_a_cpu_predicts_one_case_at_a_time(bf16_processor: None) -> None:
    network = nn.Identity()
    assert Predictor(network, config_of("fp32"), CPU).cases_at_once() == 1
    assert Predictor(network, config_of("bf16"), CPU).cases_at_once() == 32
    large = replace(config_of("bf16"), data=replace(TINY_DATA, img_size=(128, 128, 128)))
    assert Predictor(network, large, CPU).cases_at_once() == 2


TINY_DATA = config_of("fp32").data


def test_the_largest_rise_of_the_loss() -> None:
    rows = [{"train_loss": value} for value in (3.0, 2.0, 2.5, 1.0, 1.25)]
    assert largest_loss_rise(rows) == (0.5, 2)
    assert largest_loss_rise(rows[:2]) == largest_loss_rise([]) == (0.0, None)
