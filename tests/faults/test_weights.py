"""Group E: pretrained weights that are not what they say; refused with the file, the tensor and the
remedy, and nothing in them is ever run."""

from __future__ import annotations

import io
import json
import pickle
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mvl.core import files
from mvl.core.config import Config, load_config
from mvl.study import tables
from mvl.training import checkpoints
from mvl.weights.families import SourceError
from mvl.weights.gguf_source import gguf_config, open_gguf
from mvl.weights.hub import fetch_layer, find_source
from mvl.weights.sources import load_config as model_config
from mvl.weights.sources import load_layer
from tests import tiny_checkpoints as models
from tests.faults.figures import record_figure
from tests.weights.hub_server import commit_of

LISTED = [f"E{n}" for n in range(1, 13)]
NOT_HERE: dict[str, str] = {}
hub, tiny_llama = models.hub, models.tiny_llama
UP, QUERY = "model.layers.1.mlp.up_proj.weight", "model.layers.1.self_attn.q_proj.weight"


class Payload:
    """A pickle that leaves a file when it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


@pytest.fixture
def place(request, tmp_path):
    """A one-file checkpoint to break, and what else a row may ask for."""
    return SimpleNamespace(
        root=tmp_path,
        folder=one_file(request.getfixturevalue("tiny_llama"), tmp_path / "broken"),
        get=request.getfixturevalue,
        patch=request.getfixturevalue("monkeypatch"),
    )


def one_file(sharded: Path, target: Path) -> Path:
    """A checkpoint's tensors in one file."""
    target.mkdir()
    save_file(
        {
            name: tensor
            for shard in sharded.glob("*.safetensors")
            for name, tensor in load_file(shard).items()
        },
        target / "model.safetensors",
    )
    shutil.copy(sharded / "config.json", target)
    return target


def change(folder: Path, **settings: Any) -> None:
    """Other settings in config.json."""
    (folder / "config.json").write_text(
        json.dumps(json.loads((folder / "config.json").read_text()) | settings)
    )


def with_tensors(place: Any, message: str, **tensors: torch.Tensor | None) -> None:
    """`place.folder` with tensors replaced (None: dropped) is refused with a message; then it is
    whole again."""
    path = place.folder / "model.safetensors"
    whole = path.read_bytes()
    names = {"up": UP, "query": QUERY, "odd": "model.layers.1.mlp.odd.weight"}
    held = load_file(path) | {
        names[key]: tensor for key, tensor in tensors.items() if tensor is not None
    }
    save_file(
        {
            name: tensor
            for name, tensor in held.items()
            if name not in [names[key] for key, value in tensors.items() if value is None]
        },
        path,
    )
    refused(place, message)
    path.write_bytes(whole)


def refused(place: Any, message: str, layer: int = 1) -> None:
    """Layer 1 of `place.folder` cannot be had; the message names the folder, the fault and the
    remedy."""
    with pytest.raises(SourceError, match=message) as told:
        load_layer(str(place.folder), layer)
    assert str(place.folder) in str(told.value) and re.search(
        "[Ff]etch|use a checkpoint|mend its config", str(told.value)
    )


def pickles(place: Any) -> None:
    mark = place.root / "it ran"
    (place.folder / "model.safetensors").unlink()
    (place.folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(mark)))
    refused(place, "holds no safetensors but pytorch_model.bin, a pickle, which is never opened")
    place.patch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    body = io.BytesIO()
    torch.save({"weights": Payload(mark)}, body)
    path = place.root / f"checkpoint-000000001-{files.sha256_bytes(body.getvalue())[:16]}.pt"
    path.write_bytes(body.getvalue())
    with pytest.raises(
        files.RunError,
        match=rf"{re.escape(str(path))}: is no checkpoint of mvl .* was not opened; delete it",
    ):
        checkpoints.load(place.root)
    assert not mark.exists()


def keys(place: Any) -> None:
    with_tensors(place, "broken, layer 1: missing mlp.up_proj.weight", up=None)
    with_tensors(
        place, "missing mlp.up_proj.weight; extra mlp.odd.weight", up=None, odd=torch.ones(96, 48)
    )
    with_tensors(place, "extra mlp.odd.weight", odd=torch.ones(2))


def config_lies(place: Any) -> None:
    change(place.folder, num_hidden_layers=5)
    refused(
        place,
        r"broken, layer 4: missing input_layernorm.weight; .*missing self_attn.v_proj.weight",
        layer=4,
    )
    change(place.folder, num_hidden_layers=3, hidden_size=64)
    refused(place, r"shape \(96, 48\), the config says \(96, 64\)")


def values(place: Any) -> None:
    with_tensors(place, "up_proj.weight is not finite", up=torch.full((96, 48), torch.nan))
    with_tensors(place, "up_proj.weight is not finite", up=torch.full((96, 48), torch.inf))
    with_tensors(place, "up_proj.weight is all zero", up=torch.zeros(96, 48))
    with_tensors(
        place,
        "up_proj.weight is stored as torch.int32, not as floats",
        up=torch.ones(96, 48, dtype=torch.int32),
    )
    with_tensors(
        place,
        r"up_proj.weight holds 1e\+30, more than any trained weight",
        up=torch.full((96, 48), 1e30),
    )
    with_tensors(place, r"up_proj.weight has shape \(3, 3\)", up=torch.ones(3, 3))


def cut_and_flipped(place: Any) -> None:
    path = place.folder / "model.safetensors"
    whole = path.read_bytes()
    for size in (len(whole) - 1, len(whole) // 2, 100, 7, 0):
        path.write_bytes(whole[:size])
        refused(place, "model.safetensors: .*fetch it again")
    hub = place.get("hub")
    path.write_bytes(whole)
    source = find_source(f"meta/tiny@{hub.add('meta/tiny', place.folder)}")
    blob = fetch_layer(source, 1) / "model.safetensors"
    data = bytearray(blob.read_bytes())
    data[-5] ^= 64
    blob.write_bytes(bytes(data))
    with pytest.raises(
        SourceError,
        match=rf"{re.escape(str(blob))}: absent or changed since it was fetched; delete",
    ):
        load_layer(source.name, 1)


def arm(system: str, seed: int = 0, fold: int = 0) -> Config:
    """A run of the study `quick`."""
    return load_config("quick", "phantoms", system, 1.0, fold, seed)


def said(before: str, after: str = "") -> dict[str, Any]:
    """What a run's `status.json` says of its frozen tensors."""
    return {
        "frozen_sha256_before": before,
        "frozen_sha256_after": after or before,
        "parameters": {"frozen": 10},
    }


def swapped_arms(place: Any) -> None:
    pretrained, random = arm("medvisionllama_v3"), arm("medvisionllama_v3_random")
    frozen = tables.Fingerprints()
    frozen.check(pretrained, said("a"), place.root / "one")
    frozen.check(random, said("b"), place.root / "two")
    with pytest.raises(
        tables.TableError,
        match=(
            r"other/status.json: an arm with random weights .* has the frozen tensors of .*one.*"
            r" train it again"
        ),
    ):
        frozen.check(random, said("a"), place.root / "other")
    with pytest.raises(
        tables.TableError,
        match=(
            r"other/status.json: its frozen tensors are not those of .*one, .* same system and"
            r" seed; delete"
        ),
    ):
        frozen.check(arm("medvisionllama_v3", fold=1), said("c"), place.root / "other")
    frozen.check(arm("medvisionllama_v3", seed=1), said("d"), place.root / "other")


def drifted(place: Any) -> None:
    from mvl.training.loop import Trainer
    from mvl.training.run import finish

    with pytest.raises(
        tables.TableError,
        match=r"run/status.json: its frozen tensors changed in training; delete the run's folder",
    ):
        tables.Fingerprints().check(arm("medvisionllama_v3"), said("a", "b"), place.root / "run")
    network = torch.nn.Linear(2, 2).requires_grad_(False)
    trainer = object.__new__(Trainer)
    trainer.__dict__ |= {
        "network": network,
        "folder": place.root / "run",
        "progress": SimpleNamespace(frozen_sha256="0" * 64),
    }
    with pytest.raises(files.RunError, match="run: frozen weights changed during training"):
        finish(trainer)


def adapters(place: Any) -> None:
    from mvl.training.trained import load_own_state

    network = torch.nn.Linear(2, 2)
    with pytest.raises(
        files.RunError,
        match=r"weights do not fit the network: missing \['bias'\], extra \['lora_A'\]",
    ):
        load_own_state(network, {"weight": torch.ones(2, 2), "lora_A": torch.ones(1)})


def remote_code(place: Any) -> None:
    mark = place.root / "it ran"
    (place.folder / "modeling.py").write_text(f"open({str(mark)!r}, 'w')")
    change(place.folder, auto_map={"AutoModelForCausalLM": "modeling.Odd"})
    place.patch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    refused(
        place,
        r"config.json: asks for code of its repository \(auto_map: AutoModelForCausalLM\), which is"
        r" never run; use a checkpoint",
    )
    change(place.folder, model_type="odd")
    with pytest.raises(
        SourceError,
        match="config.json: model_type 'odd' is not supported.*use a checkpoint of one of",
    ):
        model_config(str(place.folder))
    assert not mark.exists()


def moved(place: Any) -> None:
    hub = place.get("hub")
    source = find_source(f"meta/tiny@{hub.add('meta/tiny', place.folder)}")
    hub.repos["meta/tiny"]["answers"][source.revision] = other = commit_of("other")
    with pytest.raises(
        SourceError,
        match=(
            f"meta/tiny: pinned to {source.revision}, the hub answers with {other}: the revision"
            " has moved. Compare"
        ),
    ):
        fetch_layer(source, 1)


def odd_ranges(place: Any) -> None:
    hub = place.get("hub")
    source = find_source(f"meta/tiny@{hub.add('meta/tiny', place.folder)}")
    hub.shifted = True
    with pytest.raises(
        SourceError,
        match=(
            "meta/tiny/model.safetensors: asked for bytes .* Content-Range .* use another network"
            " or HF_ENDPOINT"
        ),
    ):
        fetch_layer(source, 1)
    hub.shifted, hub.cuts = False, [1000] * 40
    with pytest.raises(
        SourceError, match=r"meta/tiny: model.safetensors.*run the same command again to go on"
    ):
        fetch_layer(source, 1)
    hub.cuts, hub.no_range = [], True
    wanted = load_layer(str(place.folder), 1)
    fetched = load_layer(source.name, 1)
    assert all(torch.equal(fetched.layer[name], tensor) for name, tensor in wanted.layer.items())
    hub.no_range = False
    whole = (place.folder / "model.safetensors").read_bytes()
    (place.folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**62) + whole[8:])
    other = find_source(f"meta/huge@{hub.add('meta/huge', place.folder)}")
    with pytest.raises(
        SourceError,
        match=f"model.safetensors: says that its header has {2**62} bytes.*fetch it again",
    ):
        fetch_layer(other, 1)
    sharded, lies = place.get("tiny_llama"), place.root / "lies"
    shutil.copytree(sharded, lies)
    index = json.loads((lies / "model.safetensors.index.json").read_text())
    index["weight_map"][UP] = index["weight_map"]["model.norm.weight"]
    (lies / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(
        SourceError,
        match=(
            "lacks model.layers.1.mlp.up_proj.weight, which the index says it holds; choose another"
            " commit"
        ),
    ):
        fetch_layer(find_source(f"meta/lies@{hub.add('meta/lies', lies)}"), 1)


def text(word: str) -> bytes:
    """A string as the format stores it."""
    return struct.pack("<Q", len(word)) + word.encode()


def gguf(tensors: int, fields: int, *rest: bytes) -> bytes:
    """A GGUF file that states these counts."""
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, fields) + b"".join(rest)


def array(kind: int, count: int) -> bytes:
    """A field `k` that is an array."""
    return text("k") + struct.pack("<IIQ", 9, kind, count)


GGUFS = {
    "hang, 49 bytes": gguf(0, 1, array(4, 2**40), b"1234"),
    "strings": gguf(0, 1, array(8, 2**40), bytes(64)),
    "nested": gguf(0, 1, text("k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 3000),
    "fields": gguf(0, 2**62),
    "tensors": gguf(2**40, 0),
    "key": gguf(0, 1, struct.pack("<Q", 2**63), b"k"),
    "dims": gguf(1, 0, text("t"), struct.pack("<I", 2**31)),
    "outside": gguf(1, 0, text("t"), struct.pack("<IQIQ", 1, 64, 0, 2**50)),
    "product": gguf(1, 0, text("t"), struct.pack("<IQQIQ", 2, 2**32, 2**32, 0, 0)),
    "packing": gguf(1, 0, text("t"), struct.pack("<IQIQ", 1, 64, 9999, 0)),
    "twice": gguf(0, 2, *[text("k") + struct.pack("<II", 4, 1)] * 2),
    "no magic": b"<html>please log in</html>",
    "empty": b"",
}
"Hostile files; most keep the published parser busy, or end it with an error that names no file."


def hostile_ggufs(place: Any, *names: str) -> None:
    """Each file is refused through the limited child, by name and with the remedy."""
    for name in names:
        path = place.root / f"{name}.gguf"
        path.write_bytes(GGUFS[name])
        with pytest.raises(
            SourceError,
            match=(
                rf"{name}.gguf: not a GGUF file .* that can be used \(.+\); delete it and run `mvl"
                r" fetch weights`"
            ),
        ):
            open_gguf(path)


def few_ggufs(place: Any) -> None:
    assert len(GGUFS["hang, 49 bytes"]) <= 57
    hostile_ggufs(place, "hang, 49 bytes", "nested")
    code = (
        "import sys, gguf_directory as g\nfor name in sys.argv[1:]:\n try: g.directory(name)\n"
        " except Exception: continue\n else: print(name)"
    )
    for name, body in GGUFS.items():
        (place.root / f"{name}.gguf").write_bytes(body)
    from mvl.weights import gguf_directory

    done = subprocess.run(
        [sys.executable, "-c", code, *[str(place.root / f"{name}.gguf") for name in GGUFS]],
        capture_output=True,
        text=True,
        cwd=Path(gguf_directory.__file__).parent,
        check=True,
    )
    assert done.stdout == ""
    (place.root / "other.gguf").write_bytes(
        gguf(0, 1, text("general.architecture") + struct.pack("<I", 8) + text("other")) + bytes(64)
    )
    with pytest.raises(
        SourceError, match=r"other.gguf: .*llama.embedding_length is None.*delete it"
    ):
        gguf_config(place.root / "other.gguf")


CHECKS = {
    "E1": pickles,
    "E2": keys,
    "E3": config_lies,
    "E4": values,
    "E5": cut_and_flipped,
    "E6": swapped_arms,
    "E7": drifted,
    "E8": adapters,
    "E9": remote_code,
    "E10": moved,
    "E11": odd_ranges,
    "E12": few_ggufs,
}


@pytest.mark.parametrize("row", CHECKS)
def test_weights(row, place):
    CHECKS[row](place)


def test_every_row_is_here():
    assert {*CHECKS, *NOT_HERE} == set(LISTED)


@pytest.mark.faults
def test_faults_of_weights_are_counted(place):
    path = place.folder / "model.safetensors"
    whole, caught = path.read_bytes(), 0
    length = 8 + struct.unpack("<Q", whole[:8])[0]
    sizes = range(0, len(whole), len(whole) // 60)
    for size in sizes:
        path.write_bytes(whole[:size])
        with pytest.raises(SourceError, match="fetch it again"):
            load_layer(str(place.folder), 1)
        caught += 1
    broken = [
        b"\xff" * 8 + whole[8:],
        struct.pack("<Q", 2**62) + whole[8:],
        whole + b"\0",
        whole[:8] + b"{" * (length - 8) + whole[length:],
    ]
    for body in broken:
        path.write_bytes(body)
        with pytest.raises(SourceError):
            load_layer(str(place.folder), 1)
        caught += 1
    hostile_ggufs(place, *GGUFS)
    total = len(sizes) + len(broken) + len(GGUFS)
    record_figure(
        "weights",
        caught + len(GGUFS),
        total,
        "cut and mangled safetensors, hostile GGUF files in the limited child",
    )
