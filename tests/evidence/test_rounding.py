"""The 4-bit rounding: our rounding is Q4_1, the file's own blocks are its fixed points, and the
record is what the pages say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mvl.core import files
from mvl.evidence import rounding
from mvl.models.drawn_weights import round_q4_1
from mvl.weights import wheels


def test_the_rounding_is_ggufs():
    from gguf import GGMLQuantizationType, dequantize, quantize

    matrix = torch.randn(64, 96, generator=torch.Generator().manual_seed(0)) * 0.05
    ours = round_q4_1(matrix)
    kind = GGMLQuantizationType.Q4_1
    theirs = torch.from_numpy(dequantize(quantize(matrix.numpy(), kind), kind).copy())
    step = float((matrix.max() - matrix.min()) / 15)
    # A value half-way between two levels may go either way; all others agree to a half's rounding.
    assert float(((ours - theirs).abs() > 1e-4).float().mean()) < 0.005
    assert float((ours - theirs).abs().max()) < 1.1 * step
    error = rounding.rms(ours - matrix) / rounding.rms(matrix)
    assert 0.06 < error < 0.11


def test_rounded_blocks_stay_and_equal_ones_too():
    matrix = round_q4_1(torch.randn(64, 64, generator=torch.Generator().manual_seed(1)))
    assert rounding.rms(round_q4_1(matrix) - matrix) < 2e-3 * rounding.rms(matrix)
    assert rounding.rms(rounding.rounded_again(matrix) - matrix) > 0.05 * rounding.rms(matrix)
    assert torch.equal(round_q4_1(matrix[:, :40])[:, :32], round_q4_1(matrix[:, :32]))
    assert torch.equal(round_q4_1(torch.full((2, 32), 0.5)), torch.full((2, 32), 0.5))


def test_steps_are_those_that_the_file_states():
    from gguf import GGMLQuantizationType, quantize

    values = np.linspace(-1, 2, 64, dtype=np.float32).reshape(2, 32)
    steps = rounding.steps_of(quantize(values, GGMLQuantizationType.Q4_1))
    wanted = (values.max(1) - values.min(1)) / 15
    assert steps.numpy() == pytest.approx(wanted, rel=1e-3)


def test_only_the_layers_matrices_are_changed():
    names = {
        "model.layers.0.mlp.up_proj.weight": 2,
        "model.layers.0.input_layernorm.weight": 1,
        "model.embed_tokens.weight": 2,
        "lm_head.weight": 2,
    }
    found = [
        name for name, dims in names.items() if rounding.is_matrix(name, torch.zeros([2] * dims))
    ]
    assert found == ["model.layers.0.mlp.up_proj.weight"]


def test_the_record_belongs_to_the_file_and_the_text():
    record = rounding.read_record()
    source = wheels.SOURCES[rounding.SOURCE]
    assert record["sha256"] == source.member_sha256
    assert record["text_sha256"] == files.sha256_file(rounding.TEXT)
    assert record["tensors"]["matrices of layers, Q4_1"] == 210
    loss = record["next_token_loss_nats"]
    assert loss["as published"] < loss["rounded once more"] < record["uniform_loss_nats"]
    assert min(loss["shuffled"], loss["random"]) > record["uniform_loss_nats"]
    assert record["uniform_loss_nats"] == pytest.approx(math.log(49152))
    assert all(
        0.07 < error < 0.09 for pair in record["relative_error"].values() for error in pair.values()
    )


def test_the_pages_say_what_is_recorded():
    text, table = rounding.paragraph(), rounding.table()
    record = rounding.read_record()
    assert (
        "4-bit rounding" in text
        and "all 210 matrices" in text
        and f"{record['tokens']} tokens" in text
    )
    for name, loss in record["next_token_loss_nats"].items():
        assert f"{loss:.2f}" in text and f"| {name} | {loss:.3f} |" in table
    assert table.count("%") == 2 * len(record["relative_error"])


def test_the_errors_are_measured_again_from_the_file():
    path = next(iter(wheels.source_files(rounding.SOURCE)))
    if not path.is_file():
        pytest.skip("the weights are not fetched")
    found = rounding.relative_errors(path, -1)
    wanted = rounding.read_record()["relative_error"]
    assert set(found) == set(wanted)
    for name, errors in found.items():
        assert errors == pytest.approx(wanted[name], rel=1e-4)


def test_a_spread_of_one_rounded_value_is_that_value():
    assert rounding.spread([7.9, 8.1]) == "8"
    assert rounding.spread([11.2, 8.1, 9.0]) == "8 to 11"
