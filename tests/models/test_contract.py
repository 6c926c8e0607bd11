"""Every system's YAML, made small, keeps the one contract: image (B, C, *S) -> logits (B, K, *S),
in 2-D and 3-D, from one seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mvl.core.config import Config, build, check, merge, named, system_names, to_dict
from mvl.models.build import build_system, frozen_sha256, own_state
from mvl.models.describe import system_config

PARENTS = {
    "medvisionllama_v3_minilm_rounded": "medvisionllama_v3_minilm",
    "medvisionllama_v3_mask_rotary": "medvisionllama_v3_mask",
    "medvisionllama_v3_random_trained": "medvisionllama_v3_random",
}
"Controls that are one step from another control; all others are one step from medvisionllama_v3."
V3 = [name for name in system_names() if name.startswith("medvisionllama_v3_")]
SMALL_VIT = {
    "hidden_size": 16,
    "num_heads": 2,
    "mlp_dim": 32,
    "encoder_layers": 2,
    "decoder_layers": 1,
}
SMALL_CNN = {
    "channels": [4, 4, 8, 8, 8],
    "depths": [1, 1, 1, 1, 1],
    "kernel_sizes": [3, 3, 3, 3, 3],
}
SMALL_PEER = {
    "unet": {"channels": [4, 8, 8]},
    "unetpp": {"channels": [4] * 6},
    "swinunetr": {"channels": [12]},
    "dynunet": {},
    "unetr": {"channels": [4], "hidden_size": 12, "num_heads": 2, "mlp_dim": 24},
}
EDGES = {"vit": [8, 8, 8], "dynunet": [16, 16, 16], "swinunetr": [64, 32, 32]}
"Smallest grids; the other networks get 32 on edge."


def small(name: str, dims: int, llama: Path) -> Config:
    """A system at a size that takes milliseconds: its YAML, then sizes and a local language model
    in place of its own."""
    parts = {
        key: value
        for key, value in named("systems", name).items()
        if key in ("data", "model", "train")
    }
    architecture, model = system_config(name).model.architecture, parts.get("model", {})
    kind = "vit" if architecture.startswith(("vit", "medvisionllama")) else architecture
    sizes = (
        SMALL_VIT | {"patch_size": [4] * dims} if kind == "vit" else SMALL_PEER.get(kind, SMALL_CNN)
    )
    extra = {"extra_mlp": [8, 12]} if "extra_mlp" in model else {}
    block = {"source": str(llama), "layer": -1}
    over = {
        "data": {"img_size": EDGES.get(kind, [32] * 3)[:dims]},
        "model": {**sizes, **extra, "token_block": block},
    }
    return check(build(Config, merge(parts, over), name))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", system_names())
def test_every_system_keeps_the_contract(name: str, dims: int, tiny_llama: Path) -> None:
    config = small(name, dims, tiny_llama)
    if config.model.token_block.text_guidance:
        pytest.skip("its words need a tokenizer, see test_guidance.py")
    cases = 1 if name == "swinunetr" else 2  # seconds a case
    image = torch.randn(cases, 2, *config.data.img_size, generator=torch.Generator().manual_seed(0))
    network, twin = build_system(config, 2, 3), build_system(config, 2, 3)
    state, again = own_state(network), own_state(twin)
    assert state.keys() == again.keys() and all(
        torch.equal(state[key], again[key]) for key in state
    )
    assert frozen_sha256(network) == frozen_sha256(twin)

    network.train()(image).square().mean().backward()
    first = next(p for p in network.parameters() if p.requires_grad)
    assert first.grad is not None and first.grad.isfinite().all() and first.grad.any()
    assert all(p.grad is None for p in network.parameters() if not p.requires_grad)

    stages = twin.eval().stages(image)
    assert list(stages)[-1] == "logits" and all(value.isfinite().all() for value in stages.values())
    assert stages["logits"].shape == (cases, 3, *config.data.img_size) and torch.equal(
        twin(image), stages["logits"]
    )


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, with dotted keys."""

    def nested(key, value):
        return flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}

    return {k: v for key, value in values.items() for k, v in nested(key, value).items()}


def differences(one: str, other: str) -> set[str]:
    """Dotted names of the settings in which two systems differ."""
    a, b = (flat(to_dict(system_config(name))) for name in (one, other))
    return {key for key in a if a[key] != b[key]} - {"system"}


@pytest.mark.parametrize("name", V3)
def test_a_control_is_one_substitution(name: str) -> None:
    assert len(differences(PARENTS.get(name, "medvisionllama_v3"), name)) == 1


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("identity", "token_block.kind"),
        ("mlp", "token_block.kind"),
        ("norm", "token_block.kind"),
        ("attention", "token_block.kind"),
        ("transformer", "token_block.kind"),
        ("noise", "token_block.kind"),
        ("permuted", "permute_patches"),
        ("auxiliary", "auxiliary_path"),
        ("random", "token_block.kind"),
        ("random_matched", "token_block.kind"),
        ("shuffled", "token_block.kind"),
        ("trained", "token_block.trainable"),
        ("random_trained", "token_block.trainable"),
        ("noresidual", "token_block.residual"),
        ("after_embedding", "block_position"),
        ("linear", "mapper"),
        ("r2", "r"),
    ],
)
def test_a_control_changes_what_its_name_says(name: str, setting: str) -> None:
    name = f"medvisionllama_v3_{name}"
    assert differences(PARENTS.get(name, "medvisionllama_v3"), name) == {f"model.{setting}"}


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("plain", {"hybrid_attention", "multi_scale_fusion"}),
        ("hybrid", {"multi_scale_fusion"}),
        ("fusion", {"hybrid_attention"}),
        ("noblock", {"token_block.kind"}),
    ],
)
def test_each_variant_of_version_1_changes_what_its_name_says(name: str, changed: set[str]) -> None:
    assert differences("medvisionllama_v1", f"medvisionllama_v1_{name}") == {
        f"model.{key}" for key in changed
    }


def test_version_1_without_its_parts_is_version_3_with_linear_mappers() -> None:
    assert differences("medvisionllama_v1_plain", "medvisionllama_v3_linear") == {
        "model.architecture"
    }


class LargestTensor(TorchDispatchMode):
    """Notes the most values that any tensor made inside it holds."""

    values = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        made = function(*args, **(kwargs or {}))
        sizes = [
            t.numel()
            for t in (made if isinstance(made, tuple | list) else [made])
            if isinstance(t, torch.Tensor)
        ]
        self.values = max([self.values, *sizes])
        return made


@pytest.mark.parametrize(
    "name",
    [
        "vit_baseline",
        "medvisionllama_v3",
        "medvisionllama_v3_mask",
        "medvisionllama_v3_rotary",
        "medvisionllama_v1",
    ],
)
def test_tokens_by_tokens_is_never_made_at_128_voxels_on_edge(name: str, tiny_llama: Path) -> None:
    over = {"model": {**SMALL_VIT, "token_block": {"source": str(tiny_llama), "layer": -1}}}
    config = build(
        Config,
        merge(
            {"model": named("systems", name).get("model", {})},
            {"data": {"img_size": [128] * 3}},
            over,
        ),
        name,
    )
    network, image = build_system(config, 1, 1).train(), torch.randn(1, 1, 128, 128, 128)
    with LargestTensor() as largest:
        network(image).mean().backward()
    assert image.numel() <= largest.values < 4096**2


def test_a_control_of_llm4seg_changes_its_kind_alone() -> None:
    for name in ("shuffled", "random_matched"):
        assert differences("llm4seg", f"llm4seg_{name}") == {"model.token_block.kind"}
    for name in ("attention", "transformer"):
        assert differences("llm4seg_identity", f"llm4seg_{name}") == {"model.token_block.kind"}
