"""The block is the language model's own layer, frozen; controls differ from it in one thing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from mvl.core.block_config import TokenBlockConfig
from mvl.core.config import ConfigError
from mvl.core.seeds import draw_seed
from mvl.models.build import frozen_sha256, parameter_counts
from mvl.models.drawn_weights import REDRAWN, random_layer, redrawn_layer, round_q4_1
from mvl.models.token_blocks import LanguageLayer, build_token_block
from mvl.weights.layer_check import LayerWeights
from mvl.weights.sources import load_config, load_layer

AS_TRAINED = TokenBlockConfig(residual=False, causal_mask=True, rotary=True, final_norm="none")


def hidden_states(model: torch.nn.Module, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Inputs of every layer, then the normalised output of the last."""
    with torch.no_grad():
        return model(ids, output_hidden_states=True).hidden_states


def test_with_mask_and_rotary_it_is_the_full_models_layer(tiny_llama: Path) -> None:
    states = hidden_states(
        AutoModelForCausalLM.from_pretrained(tiny_llama), torch.randint(0, 64, (2, 11))
    )
    for layer in (0, 1):
        block = build_token_block(replace(AS_TRAINED, source=str(tiny_llama), layer=layer), seed=0)
        assert (block(states[layer]) - states[layer + 1]).abs().max() < 1e-5
    last = build_token_block(
        replace(AS_TRAINED, source=str(tiny_llama), layer=-1, final_norm="loaded"), seed=0
    )
    assert (last(states[2]) - states[3]).abs().max() < 1e-5


def test_smollm2_block_is_the_full_models_layer(smollm2: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32
    )
    states = hidden_states(model, torch.randint(0, 49152, (1, 24)))
    for layer in (0, 14):
        block = build_token_block(replace(AS_TRAINED, layer=layer), seed=0)
        assert (block(states[layer]) - states[layer + 1]).abs().max() < 1e-4
    last = build_token_block(replace(AS_TRAINED, final_norm="loaded"), seed=0)
    assert (last(states[29]) - states[30]).abs().max() < 1e-4


@pytest.mark.parametrize("switch", ["causal_mask", "rotary"])
def test_each_switch_changes_the_output(tiny_llama: Path, switch: str) -> None:
    base, tokens = TokenBlockConfig(source=str(tiny_llama)), torch.randn(1, 9, 48)
    assert not torch.allclose(
        build_token_block(base, 0)(tokens),
        build_token_block(replace(base, **{switch: True}), 0)(tokens),
    )


def test_by_default_the_order_of_tokens_does_not_matter(tiny_llama: Path) -> None:
    block, tokens, order = (
        build_token_block(TokenBlockConfig(source=str(tiny_llama)), 0),
        torch.randn(1, 9, 48),
        torch.randperm(9),
    )
    assert torch.allclose(block(tokens)[:, order], block(tokens[:, order]), atol=1e-5)


def test_final_norm_switches(tiny_llama: Path) -> None:
    tokens = torch.randn(1, 5, 48)

    def make(norm):
        return build_token_block(
            TokenBlockConfig(source=str(tiny_llama), residual=False, final_norm=norm), 0
        )

    unit, loaded, none = (make(norm)(tokens) for norm in ("unit", "loaded", "none"))
    assert torch.allclose(unit.square().mean(-1), torch.ones(1, 5), atol=1e-3)
    assert torch.allclose(loaded, unit * make("loaded").norm.weight, atol=1e-5)
    assert not torch.allclose(none, unit)


def test_residual_adds_the_input(tiny_llama: Path) -> None:
    tokens = torch.randn(1, 5, 48)
    base = TokenBlockConfig(source=str(tiny_llama))
    assert torch.allclose(
        build_token_block(base, 0)(tokens),
        build_token_block(replace(base, residual=False), 0)(tokens) + tokens,
    )


def test_random_differs_from_pretrained_and_repeats(tiny_llama: Path) -> None:
    pretrained, random = (
        TokenBlockConfig(source=str(tiny_llama), kind=kind) for kind in ("pretrained", "random")
    )

    def digest(block, seed):
        return frozen_sha256(build_token_block(block, seed))

    assert digest(random, 0) == digest(random, 0) != digest(random, 1)
    assert digest(pretrained, 0) == digest(pretrained, 1) != digest(random, 0)
    one, other = build_token_block(pretrained, 0), build_token_block(random, 0)
    assert parameter_counts(one) == parameter_counts(other)
    assert {n: p.shape for n, p in one.named_parameters()} == {
        n: p.shape for n, p in other.named_parameters()
    }


def test_all_language_weights_are_frozen_and_gradients_pass_through(tiny_llama: Path) -> None:
    block, tokens = (
        build_token_block(TokenBlockConfig(source=str(tiny_llama)), 0),
        torch.randn(1, 5, 48, requires_grad=True),
    )
    block(tokens).square().sum().backward()
    assert tokens.grad is not None and tokens.grad.abs().sum() > 0
    assert all(not p.requires_grad and p.grad is None for p in block.parameters())


def test_mlp_and_identity_have_no_parameters(tiny_llama: Path) -> None:
    tokens = torch.randn(1, 5, 48)
    mlp, nothing = (
        build_token_block(TokenBlockConfig(source=str(tiny_llama), kind=kind), 0)
        for kind in ("mlp", "identity")
    )
    assert parameter_counts(mlp)["total"] == parameter_counts(nothing)["total"] == 0
    assert (
        torch.equal(nothing(tokens), tokens)
        and mlp(tokens).shape == tokens.shape
        and not torch.equal(mlp(tokens), tokens)
    )


def test_lora_in_the_block_starts_as_a_no_op_and_is_all_that_trains(tiny_llama: Path) -> None:
    tokens = torch.randn(1, 5, 48)
    plain = TokenBlockConfig(source=str(tiny_llama))
    block = build_token_block(replace(plain, lora_targets=("q_proj", "v_proj")), 0)
    assert torch.allclose(block(tokens), build_token_block(plain, 0)(tokens), atol=1e-6)
    assert isinstance(block, LanguageLayer)
    assert {n.split(".")[-3] for n, p in block.named_parameters() if p.requires_grad} == {
        "lora_A",
        "lora_B",
    }
    with pytest.raises(ValueError, match="x_proj"):
        build_token_block(replace(plain, lora_targets=("x_proj",)), 0)


@pytest.mark.parametrize("r", [1, 2, 32])
def test_lora_of_any_rank_starts_as_a_no_op(tiny_llama: Path, r: int) -> None:
    tokens, plain = torch.randn(1, 5, 48), TokenBlockConfig(source=str(tiny_llama))
    block = build_token_block(replace(plain, lora_targets=("q_proj", "down_proj"), lora_r=r), 0)
    assert torch.allclose(block(tokens), build_token_block(plain, 0)(tokens), atol=1e-6)
    assert parameter_counts(block)["trainable"] == r * (48 + 48) + r * (96 + 48)


def test_lora_in_an_encoder_of_another_family(tiny: Callable[[str], Path]) -> None:
    plain, tokens = TokenBlockConfig(source=str(tiny("bert"))), torch.randn(1, 5, 32)
    block = build_token_block(replace(plain, lora_targets=("query", "value")), 0)
    assert torch.allclose(block(tokens), build_token_block(plain, 0)(tokens), atol=1e-6)
    with pytest.raises(
        ValueError, match="'q_proj' is not among the layers dense, key, query, value"
    ):
        build_token_block(replace(plain, lora_targets=("q_proj",)), 0)


@pytest.mark.parametrize("kind", REDRAWN)
def test_redrawn_kinds_repeat_and_follow_the_seed(tiny_llama: Path, kind: str) -> None:
    def made(kind, seed):
        return frozen_sha256(
            build_token_block(TokenBlockConfig(source=str(tiny_llama), kind=kind), seed)
        )

    assert made(kind, 0) == made(kind, 0) != made(kind, 1)
    assert made(kind, 0) != made("pretrained", 0)


def test_what_each_redrawn_kind_keeps() -> None:
    layer = {
        "a.weight": torch.randn(300, 200) * 3 + 1,
        "a.bias": torch.rand(300),
        "n.weight": torch.rand(200) + 5,
    }
    given = LayerWeights(layer, {"weight": torch.rand(200)})
    kinds = {kind: redrawn_layer(given, kind, 0) for kind in REDRAWN}
    old, new = (
        given.layer["a.weight"],
        {kind: made.layer["a.weight"] for kind, made in kinds.items()},
    )
    assert torch.equal(
        new["shuffled"].flatten().sort().values, old.flatten().sort().values
    ) and not torch.equal(new["shuffled"], old)
    assert (
        abs(new["random_matched"].mean() - old.mean()) < 0.05
        and abs(new["random_matched"].std() - old.std()) < 0.05
    )
    assert not torch.equal(
        new["random_matched"].flatten().sort().values, old.flatten().sort().values
    )
    limit = (6 / 500) ** 0.5
    assert (
        0.98 * limit < new["xavier"].abs().max() <= limit
        and kinds["xavier"].layer["a.bias"].eq(0).all()
    )
    assert torch.equal(kinds["xavier"].layer["n.weight"], given.layer["n.weight"])
    assert not torch.equal(kinds["shuffled"].layer["n.weight"], given.layer["n.weight"])
    assert abs(kinds["random_matched"].layer["n.weight"].mean() - 5.5) < 0.1


def test_a_rounded_layer_is_the_pretrained_one_in_4_bits(minilm: Path, tiny_llama: Path) -> None:
    plain = TokenBlockConfig(source="minilm-l6")
    exact = dict(build_token_block(plain, 0).named_parameters())
    rounded = dict(build_token_block(replace(plain, kind="rounded"), 0).named_parameters())
    assert exact.keys() == rounded.keys()
    for name, value in rounded.items():
        wanted = round_q4_1(exact[name]) if value.dim() == 2 else exact[name]
        assert torch.equal(value, wanted), name
        assert torch.equal(value, exact[name]) is (value.dim() != 2), name
        assert value.dim() != 2 or len(value[0, :32].unique()) <= 16


def test_random_layers_start_as_the_models_do(tiny: Callable[[str], Path]) -> None:
    for family, gain in (("qwen2", 1), ("gemma2", 0), ("bert", 1)):
        config = load_config(str(tiny(family)))
        made = random_layer(config, 0)
        assert all(t.eq(0).all() for n, t in made.layer.items() if n.endswith("bias"))
        assert all(
            t.eq(gain).all()
            for n, t in made.layer.items()
            if t.dim() == 1 and not n.endswith("bias")
        )
        values = torch.cat([t.flatten() for t in made.layer.values() if t.dim() == 2])
        assert abs(values.std() - config.initializer_range) < 0.002


def test_trainable_trains_the_layer_and_nothing_around_it(tiny_llama: Path) -> None:
    block = build_token_block(TokenBlockConfig(source=str(tiny_llama), trainable=True), 0)
    assert {n for n, p in block.named_parameters() if p.requires_grad} == {
        f"layer.{n}" for n in load_layer(str(tiny_llama), -1).layer
    }
    block(torch.randn(1, 5, 48)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in block.layer.parameters())


def test_released_positions_are_llm4segs_table(tiny_llama: Path) -> None:
    """Token i is turned by pi/2 - i radians in every pair of dimensions: a shift of all tokens
    changes nothing, their order does."""
    base = TokenBlockConfig(
        source=str(tiny_llama),
        residual=False,
        final_norm="none",
        released_positions=True,
        causal_mask=True,
    )
    block, tokens = build_token_block(base, 0), torch.randn(1, 9, 48)
    cos, sin = block.positions(tokens)
    assert torch.equal(cos.flatten(), torch.arange(9).sin()) and torch.equal(
        sin.flatten(), torch.arange(9).cos()
    )
    by_hand = block.layer(
        tokens,
        position_embeddings=[
            torch.sin(torch.arange(9).view(1, 9, 1)),
            torch.cos(torch.arange(9).view(1, 9, 1)),
        ],
    )
    assert torch.allclose(block(tokens), by_hand, atol=1e-6)
    assert not torch.allclose(
        block(tokens),
        build_token_block(replace(base, released_positions=False), 0)(tokens),
        atol=1e-4,
    )


LEARNED = " has learned positions, added before its layer 0; its layers have none to switch on"


@pytest.mark.parametrize(
    ("family", "switches", "message"),
    [
        (
            "qwen2",
            {"rotary": True, "released_positions": True},
            "rotary and released_positions exclude each other",
        ),
        (
            "qwen2",
            {"trainable": True, "lora_targets": ("q_proj",)},
            "trainable and lora_targets exclude each other",
        ),
        ("qwen2", {"lora_targets": ("q_proj",), "lora_r": 0}, "lora_r must be at least 1"),
        ("qwen2", {"words": "a"}, "words are given, but text_guidance is off"),
        ("bert", {"rotary": True}, f"rotary: bert{LEARNED}"),
        ("bert", {"released_positions": True}, f"released_positions: bert{LEARNED}"),
        (
            "bert",
            {"final_norm": "loaded"},
            "final_norm loaded: bert has no final norm; its layer ends in its own",
        ),
        (
            "qwen2",
            {"kind": "zero", "text_guidance": True},
            "text_guidance: kind zero reads no words, they would change nothing",
        ),
        ("qwen2", {"kind": "attention"}, "kind attention needs the width of a network"),
    ],
)
def test_switches_that_contradict_are_refused(
    tiny: Callable[[str], Path], family: str, switches: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        build_token_block(replace(TokenBlockConfig(source=str(tiny(family))), **switches), 0)
    assert str(caught.value) == f"token_block.{message}"


def drawn(*purpose: object) -> torch.Generator:
    """The generator of a draw for this purpose, from seed 3."""
    return torch.Generator().manual_seed(draw_seed(3, "token_block", *purpose))


@pytest.mark.parametrize("kind", REDRAWN)
def test_every_redrawn_value_by_hand(kind: str) -> None:
    """Each tensor from its own name's draw; the final norm's under its own."""
    layer = {
        "a.weight": torch.randn(7, 5) * 3 + 1,
        "a.bias": torch.rand(7),
        "n.bias": torch.rand(4),
    }
    given = LayerWeights(layer, {"weight": torch.rand(6) + 2})
    made = redrawn_layer(given, kind, 3)
    for name, old, new in (
        *((name, old, made.layer[name]) for name, old in layer.items()),
        ("norm.weight", given.final_norm["weight"], made.final_norm["weight"]),
    ):
        generator = drawn(kind, name)
        if kind == "shuffled":
            wanted = old.flatten()[torch.randperm(old.numel(), generator=generator)].view_as(old)
        elif kind == "random_matched":
            spread = (old - old.mean()).square().mean().sqrt()
            wanted = torch.randn(old.shape, generator=generator) * spread + old.mean()
        elif old.ndim == 2:
            limit = (6 / (7 + 5)) ** 0.5
            wanted = (2 * torch.rand(old.shape, generator=generator) - 1) * limit
        else:
            wanted = torch.zeros(7) if name == "a.bias" else old
        assert new.dtype == torch.float32 and torch.allclose(new, wanted, atol=1e-5), name
    half = LayerWeights({"a.weight": torch.randn(5, 4).bfloat16()}, {})
    assert redrawn_layer(half, "random_matched", 3).layer["a.weight"].dtype == torch.float32


@pytest.mark.parametrize(("family", "gain"), [("qwen2", 1), ("gemma2", 0), ("bert", 1)])
def test_every_random_value_by_hand(tiny: Callable[[str], Path], family: str, gain: int) -> None:
    """One generator for the layer, its tensors in the order of their names."""
    config, generator = load_config(str(tiny(family))), drawn()
    made = random_layer(config, 3)
    for name, tensor in sorted(made.layer.items()):
        if tensor.ndim == 2:
            wanted = torch.randn(tensor.shape, generator=generator) * config.initializer_range
        else:
            wanted = torch.full(tensor.shape, 0.0 if name.endswith("bias") else float(gain))
        assert torch.equal(tensor, wanted), name
    for name, tensor in made.final_norm.items():
        assert torch.all(tensor == (0 if name.endswith("bias") else gain))
    assert bool(made.final_norm) is (family != "bert")


def test_a_model_can_be_counted_without_its_memory(tiny: Callable[[str], Path]) -> None:
    folder = str(tiny("qwen3"))
    for kind in ("pretrained", "random", "shuffled"):
        config = TokenBlockConfig(source=folder, kind=kind, rotary=True)
        with torch.device("meta"):
            sketch = build_token_block(config, 0)
        assert all(tensor.is_meta for tensor in sketch.layer.parameters())
        block = build_token_block(config, 0)
        assert [p.shape for p in sketch.parameters()] == [p.shape for p in block.parameters()]
        assert torch.isfinite(block(torch.randn(1, 5, 32))).all()
