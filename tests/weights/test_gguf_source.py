"""A GGUF file gives one layer, embedding rows and a tokenizer, each without the rest."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gguf import dequantize

from mvl.weights import gguf_source
from mvl.weights.families import SourceError
from mvl.weights.gguf_source import gguf_config, gguf_layer, gguf_rows, gguf_tokenizer


def test_tokens_are_the_models_own(smollm2: Path) -> None:
    """The ids that transformers' own reader of the same file gives."""
    tokenizer = gguf_tokenizer(smollm2)
    assert tokenizer.encode("hippocampus, T1-weighted MRI 123").ids == [
        88,
        2317,
        406,
        22550,
        28,
        312,
        33,
        29,
        37126,
        16779,
        216,
        33,
        34,
        35,
    ]
    assert tokenizer.get_vocab_size() == gguf_config(smollm2).vocab_size == 49152


def test_rows_are_those_of_the_matrix(smollm2: Path) -> None:
    matrix = next(
        tensor
        for tensor in gguf_source.open_gguf(smollm2).tensors
        if tensor.name == "token_embd.weight"
    )
    whole = torch.from_numpy(dequantize(matrix.data[:40], matrix.tensor_type))
    assert torch.equal(gguf_rows(smollm2, [7, 0, 39]), whole[[7, 0, 39]])


def test_names_and_norm_of_a_layer(smollm2: Path) -> None:
    layer, norm = gguf_layer(smollm2, 3, gguf_config(smollm2))
    assert (
        layer["self_attn.k_proj.weight"].shape == (192, 576)
        and len(layer) == 9
        and norm["weight"].shape == (576,)
    )


def test_another_kind_of_tokenizer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {"tokenizer.ggml.model": "other", "tokenizer.ggml.pre": "other"}
    monkeypatch.setattr(
        gguf_source, "open_gguf", lambda path: gguf_source.Gguf(path, fields, {}, [], None)
    )
    with pytest.raises(SourceError, match="other/other is not supported"):
        gguf_tokenizer(Path("a.gguf"))
