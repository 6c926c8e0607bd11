"""A run is exported whole or not at all, its two lines load the same network, and an ONNX file that
computes something else is refused."""

from __future__ import annotations

import builtins
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mvl.cli.main import main
from mvl.core.config import load_config
from mvl.models.exported import ExportedError, load_exported
from mvl.training import export
from mvl.training.export import ExportError, export_run
from mvl.training.run import train_run
from mvl.training.trained import load_run

STUDY = """
title: test
tasks: [phantoms]
grid: [{name: main, systems: [medvisionllama_v3, vit_baseline]}]
data: {img_size: [16, 16, 16]}
model: {patch_size: [8, 8, 8], encoder_layers: 1, decoder_layers: 1, hidden_size: 16, num_heads: 2,
        mlp_dim: 32, dropout_rate: 0.1}
train: {train_epochs: 1, batch_size: 4}
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of a tiny hybrid and of a tiny ViT."""
    root = tmp_path_factory.mktemp("exported")
    (root / "tiny.yaml").write_text(STUDY)
    return {
        name: train_run(
            load_config(str(root / "tiny.yaml"), "phantoms", name, fraction=0.2),
            root / "runs",
            progress=False,
        )
        for name in ("medvisionllama_v3", "vit_baseline")
    }


def test_the_cards_two_lines_load_the_hybrid_that_was_trained(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    pytest.importorskip("onnxruntime")
    folder = tmp_path / "a hybrid"
    assert main(["export", str(runs["medvisionllama_v3"]), str(folder)]) == 0
    assert capsys.readouterr().out.splitlines() == [str(folder)]
    names = {path.name for path in folder.iterdir()}
    assert names >= {"README.md", "config.json", "model.onnx", "model.safetensors"}
    assert [path.name for path in tmp_path.iterdir()] == ["a hybrid"]  # nothing beside it

    card = (folder / "README.md").read_text()
    [code] = re.findall(r"```python\n(.*?)```", card, re.S)
    assert len(code.splitlines()) == 2
    monkeypatch.chdir(folder)
    space: dict[str, object] = {}
    exec(code, space)
    network = space["network"]
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.inference_mode():
        wanted = load_run(runs["medvisionllama_v3"])(image)
        assert torch.equal(network(image), wanted)
    assert abs(export.run_onnx(folder / "model.onnx", image) - wanted.numpy()).max() < 1e-4
    # the layer's own weights stay where their owners publish them
    assert "block.layer" not in str(list(export.own_state(network)))
    assert "layer -1 of `smollm2-135m` (kind pretrained), licence Apache-2.0" in card
    assert "## Use of the block" in card and "not a medical device" in card


def test_an_onnx_file_that_computes_something_else_is_refused(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    pytest.importorskip("onnxruntime")
    real = export.run_onnx
    monkeypatch.setattr(export, "run_onnx", lambda path, image: real(path, image) + 2e-4)
    assert main(["export", str(runs["vit_baseline"]), str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert "differ by 2.0e-04, more than 1e-04" in said and "--no-onnx" in said
    assert list(tmp_path.iterdir()) == []


def test_without_its_packages_the_command_names_the_extra(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = builtins.__import__

    def without(name: str, *rest: object, **more: object) -> object:
        if name == "onnxruntime":
            raise ImportError(name)
        return whole(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ExportError, match=r"\.\[export\].*--no-onnx"):
        export_run(runs["vit_baseline"], tmp_path / "out")
    value = export_run(runs["vit_baseline"], tmp_path / "out", with_onnx=False)
    assert value["files"] == ["README.md", "config.json", "model.safetensors"]
    assert value["note"] and "There is no `model.onnx`" in (tmp_path / "out/README.md").read_text()
    with pytest.raises(ExportError, match="is there already and stays"):
        export_run(runs["vit_baseline"], tmp_path / "out", with_onnx=False)


def test_a_layer_with_terms_of_its_own_goes_into_no_file(runs: dict[str, Path]) -> None:
    config = export.run_folder.read_config(runs["medvisionllama_v3"])

    def with_block(**fields: str) -> object:
        block = replace(config.model.token_block, **fields)
        return replace(config, model=replace(config.model, token_block=block))

    licence, words = export.layer_words(with_block(source="llama-3.1-8b"))
    assert "Llama 3.1" in words and "Llama 3.1" in export.reason_without_onnx(True, licence)
    licence, _ = export.layer_words(with_block(source="somebody/unknown@" + "0" * 40))
    assert licence and export.reason_without_onnx(True, licence)
    licence, words = export.layer_words(with_block(source="llama-3.1-8b", kind="random"))
    assert licence == "" and "nothing pretrained" in words


def test_an_unfinished_run_and_a_killed_export_leave_no_folder(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    shutil.copy(runs["vit_baseline"] / "config.yaml", tmp_path / "run")
    with pytest.raises(ExportError, match="not a finished run"):
        export_run(tmp_path / "run", tmp_path / "out")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "check_read_back", killed)
    with pytest.raises(KeyboardInterrupt):
        export_run(runs["vit_baseline"], tmp_path / "out", with_onnx=False)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_folder_that_gives_another_network_back_is_refused(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(folder: Path) -> torch.nn.Module:
        network = load_exported(folder)
        with torch.no_grad():
            next(network.parameters()).view(-1)[0] += 1
        return network

    monkeypatch.setattr(export, "load_exported", damaged)
    with pytest.raises(ExportError, match="does not give the same network back"):
        export_run(runs["vit_baseline"], tmp_path / "out", with_onnx=False)
    monkeypatch.undo()
    export_run(runs["vit_baseline"], tmp_path / "out", with_onnx=False)
    described = json.loads((tmp_path / "out/config.json").read_text())
    (tmp_path / "out/config.json").write_text(json.dumps(described | {"num_classes": "two"}))
    with pytest.raises(ExportedError):
        load_exported(tmp_path / "out")
