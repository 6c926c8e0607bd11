"""The synthetic Llama-3.1-8B layout has the true sizes, takes no room, and one block is read from
it alone."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from mvl.bench.layer_read import LLAMA_8B, block_bytes, block_names, llama_shapes, write_layout
from mvl.core.config import ROOT
from mvl.weights.hub import fetch_part, find_source

MIDDLE = {
    **LLAMA_8B,
    "hidden_size": 1024,
    "intermediate_size": 3584,
    "head_dim": 32,
    "vocab_size": 20_000,
    "num_hidden_layers": 3,
}


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    return write_layout(tmp_path_factory.mktemp("llama-8b"))


def test_shapes_are_those_of_the_model_class(tmp_path):
    from transformers import AutoModelForCausalLM

    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
    assert {
        name: tuple(tensor.shape) for name, tensor in model.state_dict().items()
    } == llama_shapes(LLAMA_8B)
    assert sum(map(math.prod, llama_shapes(LLAMA_8B).values())) == 8_030_261_248


def test_layout_has_the_true_size_and_takes_no_room(layout):
    shards = sorted(layout.glob("*.safetensors"))
    assert len(shards) == 4 and sum(path.stat().st_size for path in shards) > 16_060_522_496
    assert sum(path.stat().st_blocks * 512 for path in shards) < 5_000_000
    assert block_bytes(layout, 31) == 436_224_000 + 2 * 4096


linux = pytest.mark.skipif(not Path("/proc/self/io").is_file(), reason="counted by Linux's /proc")


MEASURED = """
import json, sys, torch
from pathlib import Path
from safetensors.torch import load_file
from mvl.bench.layer_read import block_names, measure, resident
from mvl.weights.safetensors_ranges import read_tensors
folder = Path(sys.argv[1])
block = lambda: [tensor for _, tensor in read_tensors(folder, block_names(1))]
alone, pages = measure(folder, 1, block), resident(folder)
shards = list(folder.glob("*.safetensors"))
everything = lambda: [t.clone() for shard in shards for t in load_file(shard).values()]
print(json.dumps({"alone": alone, "pages": pages, "everything": measure(folder, 1, everything)}))
"""
"""In a process of its own: memory that other tests have freed is used again without the resident
size growing."""


@linux
def test_one_block_is_read_alone_and_held_once_and_a_reader_of_everything_is_caught(tmp_path):
    write_layout(tmp_path, MIDDLE, shard_bytes=40_000_000)
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(tmp_path)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    alone, everything = found["alone"], found["everything"]
    assert alone["block_bytes"] == alone["returned_bytes"] == block_bytes(tmp_path, 1) > 27_000_000
    assert 1 <= alone["read_ratio"] <= 1.02 and alone["peak_ratio"] <= 1.3
    assert found["pages"] >= alone["block_bytes"]
    assert everything["read_ratio"] > 3 and everything["peak_ratio"] > 3


def test_a_part_of_the_true_layer_travels_alone(hub, layout):
    source = find_source(f"meta/eight@{hub.add('meta/eight', layout)}")
    folder = fetch_part(
        source,
        lambda name: (
            block_names(31)(name)
            and "mlp" not in name
            and "q_proj" not in name
            and "o_proj" not in name
        ),
        "part",
    )
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (
        manifest["bytes"] == 2 * (2 * 1024 * 4096 + 3 * 4096)
        and manifest["model_bytes"] == 16_060_522_496
    )
    # beside the tensors: config, index and headers, 60 kB at most
    assert hub.served <= 1.02 * manifest["bytes"] + 60_000
