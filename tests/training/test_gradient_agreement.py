"""The cosine of gradients: by hand, by a slow loop, and without a trace in the network or in a run
that is measured on its way."""

import itertools
import os
import signal
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from torch import nn

from mvl.core import progress, run_folder
from mvl.core.config import Config, ConfigError, DataConfig, ModelConfig, check, load_config
from mvl.datasets import loaders, registry, splits
from mvl.datasets.task_data import TaskData
from mvl.models.vit import ViTBaseline
from mvl.study.grid import study_runs
from mvl.study.status import state_of
from mvl.training import loop, run
from mvl.training.gradient_agreement import CASES, encoder_parameters, gradient_cosine, mean_cosine
from mvl.training.objective import build_loss

SIZES = ModelConfig(
    hidden_size=16, mlp_dim=16, encoder_layers=1, decoder_layers=1, dropout_rate=0.5
)


def test_by_hand():
    assert mean_cosine(torch.tensor([[1.0, 0.0], [3.0, 0.0]])) == pytest.approx(1)
    assert mean_cosine(torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])) == pytest.approx(-1 / 3)


def test_one_case_pulls_elsewhere_than_another_by_a_slow_loop():
    torch.manual_seed(0)
    network = ViTBaseline(SIZES, (16, 16, 16), 1, 1)
    task = registry.find_task("phantoms")
    cases = splits.load_split(TaskData(task), 0, 1.0).train
    store = loaders.CaseStore(TaskData(task), cases, DataConfig(img_size=(16, 16, 16)))
    loss = build_loss(1)
    network.train()
    found = gradient_cosine(network, store, loss, "fp32")
    assert network.training
    assert all(p.grad is None for p in network.parameters())
    network.eval()
    rows = []
    for index in range(CASES):
        network.zero_grad()
        image, label = store.get(index)
        loss(network(image[None]), label[None].float()).backward()
        rows.append(torch.cat([p.grad.flatten() for p in encoder_parameters(network)]))
    cosines = [torch.cosine_similarity(a, b, dim=0) for a, b in itertools.combinations(rows, 2)]
    assert found == pytest.approx(float(torch.stack(cosines).mean()), abs=1e-5)
    assert -1 < found < 1


def test_the_decoder_has_no_part_in_it():
    network = ViTBaseline(SIZES, (16, 16, 16), 1, 1)
    chosen = {id(p) for p in encoder_parameters(network)}
    assert not chosen & {
        id(p) for part in (network.decoder, network.head) for p in part.parameters()
    }
    assert isinstance(network.positions, nn.Parameter)
    assert id(network.positions) in chosen


STUDY = """
title: test
tasks: [phantoms]
grid: [{name: main, systems: [vit_baseline, medvisionllama_v3_noise, cmunext]}]
data: {img_size: [16, 16, 16]}
model: {patch_size: [8, 8, 8], encoder_layers: 1, decoder_layers: 1, hidden_size: 32, mlp_dim: 64}
train: {train_epochs: 3, batch_size: 4, checkpoint_s: 0.0}
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a study of tiny networks."""
    path = tmp_path_factory.mktemp("study") / "agreeing.yaml"
    path.write_text(STUDY)
    return str(path)


def configs(study: str, system: str, precision: str = "fp32") -> tuple[Config, Config]:
    """A tiny run without and with the measurement."""
    plain = load_config(study, "phantoms", system, fraction=0.3)
    plain = replace(plain, train=replace(plain.train, precision=precision))
    return plain, check(replace(plain, train=replace(plain.train, gradient_epochs=(1, 3))))


@pytest.mark.parametrize(
    ("system", "precision"),
    [("vit_baseline", "fp32"), ("vit_baseline", "bf16"), ("medvisionllama_v3_noise", "fp32")],
)
def test_a_measured_run_trains_to_the_same_bytes(
    study: str, tmp_path: Path, system: str, precision: str
) -> None:
    """`noise` draws random numbers in evaluation too, which training must not notice."""
    plain, measured = configs(study, system, precision)
    without = run.train_run(plain, tmp_path / "without", progress=False)
    folder = run.train_run(measured, tmp_path / "with", progress=False)
    for name in ("weights.safetensors", "history.csv", "cases.csv"):
        assert (folder / name).read_bytes() == (without / name).read_bytes(), name
    assert not (without / "gradients.csv").exists()
    rows = pd.read_csv(folder / "gradients.csv")
    assert rows["epochs_done"].tolist() == [1, 3]
    assert rows["mean_cosine"].between(-1, 1).all() and rows["mean_cosine"].nunique() == 2
    assert set(rows["system"]) == {system}


def test_the_rows_are_sealed_and_outlive_an_interruption(
    study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, config = configs(study, "vit_baseline")
    whole = run.train_run(config, tmp_path / "whole", progress=False)
    update, count = loop.Trainer.update, iter(range(10**6))

    def update_then_signal(self: loop.Trainer, batch: dict, weight: float = 1.0) -> None:
        update(self, batch, weight)
        if next(count) == self.steps_per_epoch + 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop.Trainer, "update", update_then_signal)
    with pytest.raises(progress.Interrupted):
        run.train_run(config, tmp_path / "stopped", progress=False)
    folder = run.train_run(config, tmp_path / "stopped", progress=False)
    assert (folder / "gradients.csv").read_bytes() == (whole / "gradients.csv").read_bytes()
    assert "gradients.csv" in run_folder.recorded_files(folder)
    assert run_folder.is_done(folder)
    (folder / "gradients.csv").write_text("other\n")
    assert not run_folder.is_done(folder)


def test_a_record_made_before_the_setting_is_still_the_run_that_was_asked_for(
    study: str, tmp_path: Path
) -> None:
    plain, measured = configs(study, "vit_baseline")
    folder = tmp_path / "run"
    run_folder.write_config(folder, plain)
    path = folder / "config.yaml"
    old = yaml.safe_load(path.read_text())
    del old["train"]["gradient_epochs"]
    path.write_text(yaml.safe_dump(old))
    assert run_folder.changed_settings(folder, plain) == []
    assert run_folder.read_config(folder) == plain
    assert run_folder.changed_settings(folder, measured) == ["train.gradient_epochs: [] -> [1, 3]"]


def test_committed_records_are_done_for_the_studies_of_today() -> None:
    """Every recorded run of the second study, none of which names the setting."""
    records = run_folder.records_dir()
    seen = 0
    for config in study_runs("hippocampus2_published"):
        folder = run_folder.run_dir(records, config)
        if folder.is_dir():
            seen += 1
            assert state_of(folder, config) == "done", folder
    assert seen


@pytest.mark.parametrize(
    ("system", "epochs", "word"),
    [
        ("vit_baseline", (0,), "within 1 to"),
        ("vit_baseline", (4,), "within 1 to"),
        ("cmunext", (1,), "needs a ViT"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    study: str, system: str, epochs: tuple[int, ...], word: str
) -> None:
    plain = load_config(study, "phantoms", system)
    with pytest.raises(ConfigError, match=word):
        check(replace(plain, train=replace(plain.train, gradient_epochs=epochs)))


def test_the_protocols_study_measures_its_four_arms_and_trains_as_published() -> None:
    published = {run_folder.run_name(c): c for c in study_runs("hippocampus2_published")}
    runs = study_runs("hippocampus2_gradients")
    assert len(runs) == 12 and {config.fold for config in runs} == {0, 1, 2}
    for config in runs:
        assert config.train.gradient_epochs == (1, 5, 10, 20)
        train = replace(config.train, gradient_epochs=())
        same = replace(config, study="hippocampus2_published", train=train)
        assert same == published[run_folder.run_name(config)]
