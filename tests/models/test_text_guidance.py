"""The task's words reach the block as rows of the model's own embedding, and do not come out."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM

from mvl.core.block_config import TokenBlockConfig
from mvl.core.config import Config, ConfigError, build
from mvl.datasets.registry import find_task, load_tasks
from mvl.models.build import build_system, frozen_sha256, own_state
from mvl.models.text_guidance import task_words, word_rows
from mvl.models.token_blocks import build_token_block
from mvl.weights.families import SourceError

WORDS = "hippocampus, T1-weighted MRI"


@pytest.fixture
def spoken(tiny: Callable[[str], Path]) -> Path:
    """The tiny Llama with a tokenizer of whole words."""
    folder = tiny("llama")
    tokenizer = Tokenizer(
        models.WordLevel({"[UNK]": 0, "hippocampus": 7, ",": 8, "MRI": 9}, "[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_words_of_the_tasks() -> None:
    assert task_words(find_task("hippocampus")) == WORDS
    assert task_words(find_task("spleen")) == "spleen, CT"
    assert task_words(find_task("heart")) == "left atrium of the heart, MRI"
    assert all(
        len(task_words(task)) < 80 and ", " in task_words(task) for task in load_tasks().values()
    )


def test_rows_are_the_full_models_embedding(spoken: Path) -> None:
    embedding = AutoModelForCausalLM.from_pretrained(spoken).get_input_embeddings()
    assert torch.equal(
        word_rows(str(spoken), "hippocampus, MRI"), embedding(torch.tensor([7, 8, 9])).detach()
    )


def test_words_change_the_result_and_not_its_shape(spoken: Path) -> None:
    plain, tokens = TokenBlockConfig(source=str(spoken)), torch.randn(2, 9, 32)
    guided = replace(plain, text_guidance=True)
    block, other = (build_token_block(guided, 0, words) for words in ("hippocampus, MRI", "MRI"))
    assert block(tokens).shape == tokens.shape
    outputs = [built(tokens) for built in (block, other, build_token_block(plain, 0))]
    assert not any(
        torch.allclose(a, b, atol=1e-3)
        for a, b in ((outputs[0], outputs[1]), (outputs[0], outputs[2]), (outputs[1], outputs[2]))
    )
    assert (
        block.words is not None
        and not block.words.requires_grad
        and frozen_sha256(block) != frozen_sha256(other)
    )


def test_the_block_sees_words_then_tokens(spoken: Path) -> None:
    as_is = TokenBlockConfig(source=str(spoken), residual=False, rotary=True, causal_mask=True)
    tokens, rows = torch.randn(2, 9, 32), word_rows(str(spoken), "hippocampus, MRI")
    by_hand = build_token_block(as_is, 0)(torch.cat([rows.expand(2, -1, -1), tokens], 1))[:, 3:]
    assert torch.allclose(
        build_token_block(replace(as_is, text_guidance=True), 0, "hippocampus, MRI")(tokens),
        by_hand,
        atol=1e-6,
    )


def test_no_words_and_blocks_that_mix_nothing_are_refused(spoken: Path) -> None:
    with pytest.raises(SourceError, match="no words"):
        build_token_block(TokenBlockConfig(source=str(spoken), text_guidance=True), 0)
    with pytest.raises(ConfigError, match="kind mlp reads no words"):
        build_token_block(
            TokenBlockConfig(source=str(spoken), kind="mlp", text_guidance=True), 0, "MRI"
        )
    with pytest.raises(ConfigError, match="text_guidance is off"):
        build_token_block(TokenBlockConfig(source=str(spoken), words="MRI"), 0)


@pytest.mark.parametrize("architecture", ["medvisionllama_v3", "medvisionllama_v1", "llm4seg"])
def test_the_system_takes_its_tasks_words(spoken: Path, architecture: str) -> None:
    block = {"source": str(spoken), "text_guidance": True}
    sizes: dict[str, Any] = {"encoder_layers": 1, "decoder_layers": 1}
    if architecture == "llm4seg":
        sizes = {"channels": [4, 6, 8], "depths": [1, 1, 1], "kernel_sizes": [3, 3, 5]}
    model = {"architecture": architecture, "token_block": block, **sizes}

    def made(task):
        return build_system(
            build(
                Config, {"task": task, "model": model, "data": {"img_size": [16, 16, 16]}}, "test"
            ),
            1,
            1,
        )

    one, other = made("hippocampus"), made("spleen")
    assert (
        torch.equal(one.block.words, word_rows(str(spoken), WORDS))
        and one.block.words.shape != other.block.words.shape
    )
    assert not any("words" in name for name in own_state(one))
    block["words"] = "MRI"
    assert torch.equal(made("hippocampus").block.words, word_rows(str(spoken), "MRI"))
    block["words"] = ""
    with pytest.raises(ConfigError, match="Dataset777_Mine; set token_block.words"):
        made("Dataset777_Mine")


def test_smollm2_speaks_its_own_tokens(smollm2: Path) -> None:
    rows = word_rows("smollm2-135m", WORDS)
    assert rows.shape == (10, 576) and rows.dtype == torch.float32
    block, tokens = TokenBlockConfig(text_guidance=True), torch.randn(1, 9, 576)
    assert not torch.allclose(
        build_token_block(block, 0, WORDS)(tokens),
        build_token_block(block, 0, "spleen, CT")(tokens),
        atol=1e-3,
    )


def test_minilm_speaks_its_own_tokens(minilm: Path) -> None:
    assert word_rows("minilm-l6", "liver, CT").shape == (3, 384)


def test_only_the_words_rows_travel_from_a_hub(hub: Any, spoken: Path) -> None:
    name = f"random/spoken@{hub.add('random/spoken', spoken)}"
    assert torch.equal(
        word_rows(name, "hippocampus, MRI"), word_rows(str(spoken), "hippocampus, MRI")
    )
    block, tokens = TokenBlockConfig(source=name, text_guidance=True), torch.randn(1, 9, 32)
    assert torch.equal(
        build_token_block(block, 0, "MRI")(tokens),
        build_token_block(replace(block, source=str(spoken)), 0, "MRI")(tokens),
    )
    assert not (next((Path(os.environ["MVL_WEIGHTS"]) / "hub").glob("*/*")) / "layer-0").exists()
