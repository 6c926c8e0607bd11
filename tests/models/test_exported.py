"""A folder that is no export, or whose parts do not belong together, is refused with its name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mvl.core.config import load_config, to_dict
from mvl.models.build import build_system, frozen_sha256, own_state
from mvl.models.exported import CONFIG, WEIGHTS, ExportedError, load_exported

STUDY = """
title: test
tasks: [phantoms]
grid: [{name: main, systems: [medvisionllama_v3_norm, vit_baseline]}]
data: {img_size: [16, 16, 16]}
model: {patch_size: [8, 8, 8], encoder_layers: 1, decoder_layers: 1, hidden_size: 16, num_heads: 2,
        mlp_dim: 32}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An exported network whose weights are not those that a new one starts with."""
    (tmp_path / "study.yaml").write_text(STUDY)
    config = load_config(str(tmp_path / "study.yaml"), "phantoms", "medvisionllama_v3_norm")
    network = build_system(config, 1, 2)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.5)
    save_file({k: v.contiguous() for k, v in own_state(network).items()}, tmp_path / WEIGHTS)
    described = {"model_type": "mvl", "channels": ["T1w"], "classes": ["one"], "num_classes": 2}
    facts = {"frozen_sha256": frozen_sha256(network), "config": to_dict(config)}
    (tmp_path / CONFIG).write_text(json.dumps(described | facts))
    return tmp_path


def test_a_whole_folder_gives_its_own_weights(folder: Path) -> None:
    network = load_exported(folder)
    assert not network.training
    first = build_system(
        load_config(str(folder / "study.yaml"), "phantoms", network_of(folder)), 1, 2
    )
    for name, tensor in first.named_parameters():
        assert torch.equal(network.get_parameter(name), tensor + 0.5), name


def network_of(folder: Path) -> str:
    return json.loads((folder / CONFIG).read_text())["config"]["system"]


def change(folder: Path, **facts: object) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


def test_what_does_not_belong_together_is_refused(folder: Path) -> None:
    for facts, words in (
        ({"frozen_sha256": "0" * 64}, "frozen layer of smollm2-135m differs"),
        ({"model_type": "llama"}, "its model_type is 'llama'"),
    ):
        whole = (folder / CONFIG).read_text()
        change(folder, **facts)
        with pytest.raises(ExportedError, match=re.escape(words)):
            load_exported(folder)
        (folder / CONFIG).write_text(whole)
    save_file({"stranger": torch.zeros(1)}, folder / WEIGHTS)
    with pytest.raises(ExportedError, match="other tensors"):
        load_exported(folder)
    (folder / WEIGHTS).write_bytes(b"cut off")
    with pytest.raises(ExportedError, match="cannot be read"):
        load_exported(folder)
    (folder / CONFIG).unlink()
    with pytest.raises(ExportedError, match=r"config\.json: no description"):
        load_exported(folder)
