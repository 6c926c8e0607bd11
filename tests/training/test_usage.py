"""Use of the block: 0 for a network that ignores it, large for one that hangs on it; sealed with
the run; the same from the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from mvl.cli.main import main
from mvl.core import files, run_folder
from mvl.core.config import Config, load_config
from mvl.datasets.case_store import CaseStore
from mvl.datasets.splits import load_split
from mvl.datasets.task_data import open_task
from mvl.models.build import build_system
from mvl.models.control_blocks import TokenBlock
from mvl.models.interventions import INTERVENTIONS, SIZES
from mvl.models.medvisionllama_v3 import MedVisionLlamaV3
from mvl.training import usage
from mvl.training.run import train_run
from mvl.training.trained import Predictor
from mvl.training.usage_records import read_usage

STUDY = """
title: test
tasks: [phantoms]
grid:
  - name: main
    systems: [medvisionllama_v3_norm, medvisionllama_v3_auxiliary, medvisionllama_v3_attention,
              vit_baseline]
data: {img_size: [16, 16, 16]}
model: {patch_size: [4, 4, 4], encoder_layers: 1, decoder_layers: 1, hidden_size: 16, num_heads: 2,
        mlp_dim: 32, dropout_rate: 0.0}
train: {train_epochs: 2, batch_size: 4}
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a study of tiny hybrids."""
    path = tmp_path_factory.mktemp("study") / "used.yaml"
    path.write_text(STUDY)
    return str(path)


def config_of(study: str, system: str) -> Config:
    """A tiny run on a few phantoms."""
    return load_config(study, "phantoms", system, fraction=0.2)


@pytest.fixture(scope="module")
def run(study: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a trained hybrid whose block has no weights."""
    config = config_of(study, "medvisionllama_v3_norm")
    return train_run(config, tmp_path_factory.mktemp("runs"), progress=False)


def measured(network: torch.nn.Module, config: Config) -> dict[str, dict[str, object]]:
    """Rows by intervention over three test phantoms."""
    data = open_task("phantoms")
    store = CaseStore(data, load_split(data, 0, 1.0).test[:3], config.data)
    rows = usage.measure_usage(Predictor(network, config), store)
    return {str(row["intervention"]): row for row in rows}


class CutOut(MedVisionLlamaV3):
    """Version 3 with its block cut out: VD2 is fed with VD1's output."""

    def through_block(self, tokens: Tensor, out: dict[str, Tensor]) -> Tensor:
        out["mapper1"] = out["block"] = self.mapper1(tokens)
        out["mapper2"] = self.mapper2(out["mapper1"])
        return out["mapper2"]


class Planted(TokenBlock):
    """A block that the rest hangs on: h is what sets a token apart from the mean token, and far
    larger than x."""

    def branch(self, tokens: Tensor) -> Tensor:
        return 100 * (tokens - tokens.mean(dim=1, keepdim=True))


def test_a_network_with_its_block_cut_out_shows_no_use(study: str) -> None:
    config = config_of(study, "medvisionllama_v3_norm")
    torch.manual_seed(0)
    rows = measured(CutOut(config.model, config.data.img_size, 1, 1, 0), config)
    assert tuple(rows) == INTERVENTIONS
    assert [row["dice_difference"] for name, row in rows.items() if name != "no_block"] == [0.0] * 7
    assert rows["as_trained"]["branch_norm"] == "", "the block saw nothing"


@pytest.mark.parametrize("system", ["medvisionllama_v3_identity", "medvisionllama_v3_auxiliary"])
def test_a_block_that_says_nothing_or_is_not_asked_shows_no_use(study: str, system: str) -> None:
    config = config_of(study, system)
    if system.endswith("auxiliary"):
        block = replace(config.model.token_block, kind="norm")
        config = replace(config, model=replace(config.model, token_block=block))
    rows = measured(build_system(config, 1, 1), config)
    same = [name for name in INTERVENTIONS if name != "no_block" or system.endswith("auxiliary")]
    assert [rows[name]["dice_difference"] for name in same] == [0.0] * len(same)


def test_a_planted_block_that_matters_shows_large_use(study: str) -> None:
    """The network segments by its block alone: a patch is foreground if its brightness stands out
    from the others'."""
    config = config_of(study, "medvisionllama_v3_identity")
    config = replace(config, model=replace(config.model, patch_size=(2, 2, 2)))
    network = build_system(config, 1, 1).eval()
    network.block, network.mapper1, network.mapper2 = (
        Planted(16, True),
        torch.nn.Identity(),
        torch.nn.Identity(),
    )
    vit = network.vit
    vit.encoder, vit.decoder = torch.nn.Sequential(), torch.nn.Sequential()
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.zero_()
        vit.embed.weight[0] = 1 / 8
        vit.head.weight[:, 0] = 1.0
        vit.head.bias.fill_(-100.0)
    rows = measured(network, config)
    assert rows["as_trained"]["dice"] > 0.3
    for name in ("zero", "mean", "shuffled_tokens", "attention_off"):
        assert rows[name]["dice_difference"] < -0.2, name
    assert rows["as_trained"]["variation_ratio"] == pytest.approx(100, rel=1e-3)
    assert rows["zero"]["branch_norm"] == 0 and rows["mean"]["variation_ratio"] < 0.01


def test_a_hybrids_run_records_and_seals_its_use(run: Path) -> None:
    status, table, cases = (
        run_folder.read_status(run),
        pd.read_csv(run / "usage.csv"),
        pd.read_csv(run / "cases.csv"),
    )
    assert list(table.columns) == usage.COLUMNS and tuple(table["intervention"]) == INTERVENTIONS
    assert status["files"]["usage.csv"] == files.sha256_file(run / "usage.csv")
    first = table.set_index("intervention").loc["as_trained"]
    assert (
        first["dice"] == pytest.approx(cases["dice"].mean(), abs=1e-12)
        and first["dice_difference"] == 0
    )
    assert (table["dice_difference"] == table["dice"] - first["dice"]).all()
    assert np.isfinite(first[list(SIZES)].astype(float)).all()
    assert table[list(SIZES)].tail(1).isna().all(axis=None) and len(table) == 8
    assert run_folder.is_done(run, need_weights=True) and run_folder.recorded_files(run) == (
        *run_folder.RECORD_FILES,
        "usage.csv",
    )


def test_a_damaged_use_makes_a_run_not_done(run: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(run, folder)
    (folder / "usage.csv").write_text("other\n")
    assert not run_folder.is_done(folder)
    (folder / "usage.csv").unlink()
    assert not run_folder.is_done(folder), "sealed and gone"


def test_the_command_writes_what_the_run_recorded(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(run, folder)
    (folder / "usage.csv").write_text("left unsealed by a command that was stopped\n")
    status = run_folder.read_status(folder)
    del status["files"]["usage.csv"]
    files.write_json(folder / "status.json", status)
    assert run_folder.is_done(folder, need_weights=True), "a run of old without it is whole"
    assert main(["usage", str(folder)]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in (*INTERVENTIONS, "points", "|h|"))
    assert (folder / "usage.csv").read_bytes() == (run / "usage.csv").read_bytes()
    assert run_folder.read_status(folder) == run_folder.read_status(run) and run_folder.is_done(
        folder, need_weights=True
    )
    before = (folder / "usage.csv").stat().st_mtime_ns
    assert main(["usage", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["intervention"] for row in found] == list(INTERVENTIONS)
    assert (folder / "usage.csv").stat().st_mtime_ns == before, (
        "what is sealed is not written again"
    )
    rows = read_usage(folder)
    assert (
        rows[0]["dice"] == found[0]["dice"]
        and np.isnan(rows[-1]["cosine"])
        and read_usage(tmp_path) == []
    )


def test_a_network_without_a_block_has_none_and_says_so(
    study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train_run(config_of(study, "vit_baseline"), tmp_path, progress=False)
    assert not (folder / "usage.csv").exists() and run_folder.is_done(folder, need_weights=True)
    assert main(["usage", str(folder)]) == 1 and "has no block" in capsys.readouterr().err
    (folder / "weights.safetensors").unlink()
    assert (
        main(["usage", str(folder)]) == 1
        and "not a finished run with whole weights" in capsys.readouterr().err
    )
