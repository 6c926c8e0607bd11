"""The ViT: shapes in 2-D and 3-D, patches in order, what a long block keeps, the released size."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mvl.core.config import Config, ModelConfig, build
from mvl.models import attention, tiled_attention, vit
from mvl.models.build import build_system, parameter_counts
from mvl.models.describe import system_config
from mvl.models.vit import ViTBaseline, patchify, unpatchify


@pytest.mark.parametrize(("size", "patch"), [((8, 12), (4, 4)), ((8, 12, 16), (4, 4, 8))])
def test_unpatchify_inverts_patchify(size: tuple[int, ...], patch: tuple[int, ...]) -> None:
    image = torch.randn(2, 3, *size)
    assert torch.equal(unpatchify(patchify(image, patch), size, patch), image)


def test_tokens_are_patches_in_row_major_order() -> None:
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert patchify(image, (2, 2))[0].tolist() == [
        [0, 1, 4, 5],
        [2, 3, 6, 7],
        [8, 9, 12, 13],
        [10, 11, 14, 15],
    ]


@pytest.mark.parametrize(("size", "classes"), [((16, 24), 1), ((16, 8, 24), 3)])
def test_logits_have_the_image_grid(size: tuple[int, ...], classes: int) -> None:
    model = ModelConfig(patch_size=(8,) * len(size), encoder_layers=1, decoder_layers=1)
    network = ViTBaseline(model, size, num_channels=2, num_classes=classes)
    stages = network.stages(torch.randn(2, 2, *size))
    assert stages["logits"].shape == (2, classes, *size)
    assert list(stages) == ["embedding", "encoder", "decoder", "logits"]


def test_released_size_has_the_released_parameter_count() -> None:
    """paper_facts: 1,161,280 with one unused visual head of 33,280; 4,096 positions at 128 voxels
    and patch 8."""
    config = build(Config, {"data": {"img_size": [128, 128, 128]}}, "test")
    assert parameter_counts(build_system(config, 1, 1))["total"] == 1_161_280 - 33_280


def test_every_parameter_gets_a_gradient() -> None:
    network = ViTBaseline(ModelConfig(encoder_layers=1, decoder_layers=1), (16, 16, 16), 1, 1)
    network(torch.randn(1, 1, 16, 16, 16)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_recomputing_a_block_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "available", lambda: False)
    gradients, image = [], torch.randn(1, 1, 16, 16, 16)
    for limit in (10**9, 1):
        monkeypatch.setattr(attention, "LONG", limit)
        torch.manual_seed(0)
        network = ViTBaseline(
            ModelConfig(encoder_layers=1, decoder_layers=1, dropout_rate=0.1), (16, 16, 16), 1, 1
        ).train()
        network(image).square().sum().backward()
        gradients.append([p.grad for p in network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients))


class Watch(TorchDispatchMode):
    """The operators that ran, and the bytes of what they made that is still held; views of what
    they were given are not new."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: list[str] = []
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def storages(tree):
            return {
                s._cdata: s
                for s in (
                    t.untyped_storage() for t in tree_leaves(tree) if isinstance(t, torch.Tensor)
                )
            }

        self.ran.append(func.name())
        out, given = func(*args, **(kwargs or {})), storages(args)
        self.made |= {
            key: (StorageWeakRef(s), s.nbytes())
            for key, s in storages(out).items()
            if key not in given
        }
        return out

    def bytes(self) -> int:
        return sum(size for storage, size in self.made.values() if not storage.expired())


@pytest.mark.parametrize("ours", [True, False])
def test_a_long_block_keeps_attention_alone_and_computes_the_rest_again(
    monkeypatch: pytest.MonkeyPatch, ours: bool
) -> None:
    """Kept beside input and output: the output of attention, one width a token, and a number a head
    for its softmax."""
    if ours and not tiled_attention.available():
        pytest.skip("this build of PyTorch has no oneDNN")
    monkeypatch.setattr(attention, "available", lambda: ours)
    block, tokens = (
        vit.ViTBlock(64, 4, 256, 0.0).train(),
        torch.randn(1, attention.LONG, 64, requires_grad=True),
    )
    with Watch() as forward:
        out = block(tokens)
        held = forward.bytes()
    assert held <= 4 * (2 * 64 + 8) * attention.LONG
    with Watch() as backward:
        out.sum().backward()
    name = "mvl::tiled_attention" if ours else "aten::_scaled_dot_product_flash_attention_for_cpu"
    assert (
        forward.ran.count(name) == 1
        and name not in backward.ran
        and backward.ran.count("aten::gelu") == 1
    )
    assert f"{name}_backward" in backward.ran


def released(name: str) -> dict[str, int]:
    """Parameters of a system at 128 voxels, the released code's grid; built on `meta`, so without
    memory."""
    config = system_config(name)
    with torch.device("meta"):
        return parameter_counts(
            build_system(
                dataclasses.replace(
                    config, data=dataclasses.replace(config.data, img_size=(128, 128, 128))
                ),
                1,
                1,
            )
        )


def test_released_vit_depth_has_the_released_parameter_count() -> None:
    """paper_facts: 257,693,696 with one unused visual head, 1024 * 512 + 512."""
    assert released("vit_depth_released")["total"] == 257_693_696 - 524_800


def test_released_vit_mlp_adds_the_released_5_7_billion() -> None:
    """paper_facts: 5,721,485,376 parameters in the added MLP of 12 linear maps; the rest is the
    baseline."""
    assert (
        released("vit_mlp_released")["total"] - released("vit_baseline")["total"] == 5_721_485_376
    )
    assert sum(isinstance(layer, torch.nn.Linear) for layer in meta_mlp()) == 12


def meta_mlp() -> torch.nn.Sequential:
    """The released ViT-MLP's added MLP on `meta`."""
    config = system_config("vit_mlp_released")
    with torch.device("meta"):
        return vit.deep_mlp(
            config.model.hidden_size, config.model.extra_mlp, config.model.dropout_rate
        )


def test_matched_controls_train_as_many_parameters_as_version_3(smollm2: object) -> None:
    """Within 1 %; identity in the frozen block's place has as many trained parameters (see
    test_medvisionllama_v3)."""
    with torch.device("meta"):
        counts = {
            name: parameter_counts(build_system(system_config(name), 1, 1))
            for name in ("vit_depth", "vit_mlp", "medvisionllama_v3_identity")
        }
    target = counts.pop("medvisionllama_v3_identity")["trainable"]
    assert target == 904_384
    assert all(
        abs(count["trainable"] / target - 1) < 0.01 and count["frozen"] == 0
        for count in counts.values()
    )


def test_the_extra_mlp_comes_between_decoder_and_head() -> None:
    model = ModelConfig(
        patch_size=(8, 8), encoder_layers=1, decoder_layers=1, extra_mlp=(16, 32), dropout_rate=0.0
    )
    network, image = ViTBaseline(model, (16, 16), 1, 1), torch.randn(1, 1, 16, 16)
    stages = network.stages(image)
    assert list(stages) == ["embedding", "encoder", "decoder", "extra_mlp", "logits"]
    first, _, second, _, third, _ = network.extra_mlp
    by_hand = third(
        torch.nn.functional.gelu(second(torch.nn.functional.gelu(first(stages["decoder"]))))
    )
    assert torch.equal(stages["extra_mlp"], by_hand)
    assert torch.equal(stages["logits"], unpatchify(network.head(by_hand), (16, 16), (8, 8)))


def test_the_extra_mlp_leaves_every_other_weight_alone() -> None:
    model = {"patch_size": [8, 8], "encoder_layers": 1, "decoder_layers": 1}
    plain, extra = (
        build_system(
            build(Config, {"data": {"img_size": [16, 16]}, "model": {**model, **more}}, "test"),
            1,
            1,
        ).state_dict()
        for more in ({}, {"extra_mlp": [16]})
    )
    assert (
        all(torch.equal(extra[name], tensor) for name, tensor in plain.items())
        and len(extra) == len(plain) + 4
    )


def test_a_gpu_computes_again_only_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    block, tokens = vit.ViTBlock(8, 2, 16, 0.0), torch.randn(1, attention.LONG, 8)
    kept = 4 * attention.LONG * (10 * 8 + 2 * 16)
    assert block.recomputes(tokens) and not block.recomputes(tokens[:, 1:])  # a CPU always
    monkeypatch.setattr(attention, "on_gpu", lambda tensor: True)
    attention.fits_gpu.cache_clear()
    assert block.recomputes(tokens)  # no GPU to ask
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for free, again in ((64 * kept - 1, True), (64 * kept, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda free=free: (free, 80 * 2**30))
        attention.fits_gpu.cache_clear()
        assert block.recomputes(tokens) is again
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, 80 * 2**30))
    assert not block.recomputes(tokens)  # asked once, whatever another process takes later
    attention.fits_gpu.cache_clear()
