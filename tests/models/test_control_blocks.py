"""Blocks without a language model's layer: each is what an independent formula says, and noise is
drawn so that runs repeat."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from mvl.core.block_config import TokenBlockConfig
from mvl.core.config import Config, build
from mvl.models.build import build_system
from mvl.models.control_blocks import (
    NativeSizes,
    Noise,
    TrainedAttention,
    TrainedTransformer,
    build_control,
)
from mvl.models.token_blocks import build_token_block

SIZES = NativeSizes(width=8, num_heads=2, mlp_dim=24, dropout_rate=0.0)
TOKENS = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))


def randomised(block: nn.Module) -> nn.Module:
    """The block in double precision with every parameter drawn, so that no norm is neutral and no
    bias 0."""
    block = block.double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_()
    return block


def reference(block: TrainedAttention) -> nn.MultiheadAttention:
    """PyTorch's own attention with the block's weights."""
    theirs = nn.MultiheadAttention(8, 2, batch_first=True).double()
    theirs.load_state_dict(
        {
            "in_proj_weight": block.qkv.weight,
            "in_proj_bias": block.qkv.bias,
            "out_proj.weight": block.out.weight,
            "out_proj.bias": block.out.bias,
        }
    )
    return theirs


@pytest.mark.parametrize("residual", [True, False])
def test_attention_is_pytorchs_prenorm_attention_with_one_residual(residual: bool) -> None:
    block = randomised(TrainedAttention(SIZES, residual))
    tokens = TOKENS.double().requires_grad_()
    normed = block.norm(tokens)
    added = reference(block)(normed, normed, normed, need_weights=False)[0]
    assert torch.allclose(block(tokens), tokens + added, atol=1e-12)
    assert torch.allclose(block.branch(tokens), added if residual else tokens + added, atol=1e-12)
    gradient = torch.autograd.grad(block(tokens).square().sum(), tokens)[0]
    wanted = torch.autograd.grad(
        (tokens + reference(block)(block.norm(tokens), block.norm(tokens), block.norm(tokens))[0])
        .square()
        .sum(),
        tokens,
    )[0]
    assert torch.allclose(gradient, wanted, rtol=1e-9)


@pytest.mark.parametrize("residual", [True, False])
def test_transformer_is_pytorchs_prenorm_encoder_layer(residual: bool) -> None:
    block = randomised(TrainedTransformer(SIZES, residual))
    theirs = nn.TransformerEncoderLayer(
        8, 2, 24, 0.0, "gelu", batch_first=True, norm_first=True
    ).double()
    ours = block.layer
    pairs = {
        "self_attn.in_proj_weight": ours.qkv.weight,
        "self_attn.in_proj_bias": ours.qkv.bias,
        "self_attn.out_proj.weight": ours.out.weight,
        "self_attn.out_proj.bias": ours.out.bias,
        "linear1.weight": ours.mlp[0].weight,
        "linear1.bias": ours.mlp[0].bias,
        "linear2.weight": ours.mlp[2].weight,
        "linear2.bias": ours.mlp[2].bias,
        "norm1.weight": ours.norm1.weight,
        "norm1.bias": ours.norm1.bias,
        "norm2.weight": ours.norm2.weight,
        "norm2.bias": ours.norm2.bias,
    }
    theirs.load_state_dict(pairs)
    tokens = TOKENS.double()
    out = theirs(tokens)
    assert torch.allclose(block(tokens), out, atol=1e-12)
    assert torch.allclose(block.branch(tokens), out - tokens if residual else out, atol=1e-12)


@pytest.mark.parametrize("kind", ["norm", "mlp"])
def test_norm_is_gelu_and_a_standardised_token_under_either_name(kind: str) -> None:
    bent = TOKENS * 0.5 * (1 + torch.erf(TOKENS / math.sqrt(2)))
    standard = (bent - bent.mean(-1, keepdim=True)) / (
        bent.var(-1, correction=0, keepdim=True) + 1e-5
    ).sqrt()
    assert torch.allclose(build_control(kind, 8, True, 0)(TOKENS), TOKENS + standard, atol=1e-5)
    assert torch.allclose(build_control(kind, 8, False, 0)(TOKENS), standard, atol=1e-5)


def test_zero_and_identity_leave_the_residual_alone() -> None:
    assert torch.equal(build_control("zero", 8, True, 0)(TOKENS), TOKENS)
    assert torch.equal(build_control("zero", 8, False, 0)(TOKENS), torch.zeros_like(TOKENS))
    for residual in (True, False):
        block = build_control("identity", 8, residual, 0)
        assert torch.equal(block(TOKENS), TOKENS) and torch.equal(
            block.join(block.branch(TOKENS), TOKENS), TOKENS
        )


def test_noise_has_the_size_of_the_pretrained_block_and_no_direction(tiny_llama) -> None:
    pretrained = build_token_block(TokenBlockConfig(source=str(tiny_llama)), 0)
    noise = build_token_block(TokenBlockConfig(source=str(tiny_llama), kind="noise"), 0).eval()
    tokens = torch.randn(2, 200, 48)
    said, drawn = pretrained.branch(tokens).norm(dim=-1), noise.branch(tokens).norm(dim=-1)
    assert torch.allclose(drawn, torch.full_like(drawn, 48**0.5), rtol=1e-4) and torch.allclose(
        said, drawn, rtol=1e-3
    )
    assert noise.branch(tokens).mean(dim=(0, 1)).abs().max() < 0.3
    assert torch.equal(noise(tokens), noise.branch(tokens) + tokens)


def test_noise_in_evaluation_is_a_function_of_seed_and_case() -> None:
    block, other = Noise(8, True, 0).eval(), Noise(8, True, 1).eval()
    assert torch.equal(block.branch(TOKENS), block.branch(TOKENS))
    assert torch.equal(block.branch(TOKENS)[1], block.branch(TOKENS[1:2])[0]), (
        "the same alone and in a batch"
    )
    assert not torch.allclose(block.branch(TOKENS)[0], block.branch(TOKENS)[1])
    assert not torch.allclose(block.branch(TOKENS), other.branch(TOKENS))
    assert not torch.allclose(block.branch(TOKENS), block.branch(TOKENS + 1e-3))


def test_noise_in_training_is_drawn_anew_from_the_generator_that_the_loop_seeds() -> None:
    block = Noise(8, True, 0).train()
    torch.manual_seed(3)
    first, second = block.branch(TOKENS), block.branch(TOKENS)
    torch.manual_seed(3)
    assert torch.equal(block.branch(TOKENS), first) and not torch.allclose(first, second)


def test_dropout_of_native_blocks_is_the_networks() -> None:
    block = TrainedAttention(NativeSizes(8, 2, 24, 0.5), True).train()
    torch.manual_seed(0)
    added = block.branch(TOKENS)
    assert (
        0.3 < float(added.eq(0).float().mean()) < 0.7
        and not block.eval().branch(TOKENS).eq(0).any()
    )


MODEL = {
    "hidden_size": 16,
    "num_heads": 2,
    "mlp_dim": 24,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "dropout_rate": 0.0,
}


@pytest.mark.parametrize("kind", ["attention", "transformer"])
def test_native_blocks_stand_between_encoder_and_decoder_without_mappers(kind: str) -> None:
    model = {**MODEL, "architecture": "medvisionllama_v3", "token_block": {"kind": kind}}
    network = build_system(
        build(Config, {"data": {"img_size": [16, 16, 16]}, "model": model}, "test"), 1, 1
    ).eval()
    stages = network.stages(torch.randn(1, 1, 16, 16, 16))
    assert torch.equal(stages["mapper2"], network.block(stages["encoder"]))
    assert not [name for name, _ in network.named_parameters() if name.startswith("mapper")]
    assert all(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("kind", ["attention", "transformer"])
def test_native_blocks_stand_at_llm4segs_bottleneck_without_linear_maps(kind: str) -> None:
    model = {
        "architecture": "llm4seg",
        "channels": [4, 8],
        "depths": [1, 1],
        "kernel_sizes": [3, 3],
        "token_block": {"kind": kind, "residual": False},
    }
    network = build_system(
        build(Config, {"data": {"img_size": [16, 16]}, "model": model}, "test"), 1, 1
    ).eval()
    stages = network.stages(torch.randn(1, 1, 16, 16))
    tokens = stages["bottleneck"].flatten(2).transpose(1, 2)
    assert torch.equal(stages["mapper2"], network.block(tokens)) and network.block.width == 8
