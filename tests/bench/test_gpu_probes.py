"""What a child of `make gpu` measures, on a CPU in small: it runs, it tells what is wrong, and one
failure costs one part."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from mvl.bench import gpu_parts, gpu_probes, gpu_steps
from mvl.core import files
from mvl.study import inline
from mvl.weights import families


def told(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    """The lines for the parent."""
    lines = capsys.readouterr().out.splitlines()
    return [
        json.loads(line.removeprefix(gpu_parts.MARK))
        for line in lines
        if line.startswith(gpu_parts.MARK)
    ]


def test_a_part_that_fails_costs_itself_alone(capsys: pytest.CaptureFixture[str]) -> None:
    def measure(part: str) -> dict[str, object]:
        if part == "b":
            raise ValueError("no such thing\nand more")
        if part == "d":
            raise families.SourceError("not fetched")
        return {"x": 1} if part == "a" else {"state": "refused"}

    gpu_parts.each_part(["a", "b", "c", "d"], measure)
    assert told(capsys) == [
        {"begin": "a"},
        {"part": "a", "state": "done", "facts": {"x": 1}},
        {"begin": "b"},
        {"part": "b", "state": "failed", "facts": {"error": "ValueError: no such thing"}},
        {"begin": "c"},
        {"part": "c", "state": "refused", "facts": {}},
        {"begin": "d"},
        {
            "part": "d",
            "state": "skipped: its weights are not here",
            "facts": {"error": "not fetched"},
        },
    ]


def test_a_lost_gpu_ends_the_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_parts.gpu_slots, "gpu_is_lost", lambda: True)
    with pytest.raises(SystemExit) as ended:
        gpu_parts.each_part(["a", "b"], lambda part: {}[part])
    assert ended.value.code == inline.GPU_LOST and len(told(capsys)) == 2


def test_agreement_compares_logits_and_gradients_by_their_largest_difference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    facts = gpu_probes.agreement("cpu", "unet_plain")
    assert facts["state"] == "done" and facts["fp32_logits"] == facts["fp32_gradients"] == 0.0
    assert 0 < facts["bf16_logits"] <= gpu_probes.TOLERANCE["bf16"]
    monkeypatch.setitem(gpu_probes.TOLERANCE, "bf16", 1e-9)
    assert gpu_probes.agreement("cpu", "unet_plain")["state"] == "failed"
    assert gpu_probes.difference(
        torch.tensor([1.0, -4.0]), torch.tensor([1.1, -4.0])
    ) == pytest.approx(0.1 / 4)
    assert math.isinf(gpu_probes.difference(torch.ones(2), torch.tensor([1.0, float("nan")])))


def test_attention_is_refused_by_a_backend_that_cannot_and_measured_by_one_that_can() -> None:
    parts = gpu_probes.attention_parts()
    assert len(set(parts)) == 24 and "grouped 64, fp32, efficient" in parts
    done = gpu_probes.attention("cpu", 16, "grouped 64, fp32, math")
    assert done["ms"] > 0 and done["keys_repeated"] is False
    assert gpu_probes.attention("cpu", 16, "16, fp32, cudnn")["state"] == "refused"


@pytest.mark.parametrize(
    "part", ["hippocampus vit_baseline, fp32, eager", "busi256 cmunext, fp32, eager"]
)
def test_a_step_is_measured_beside_the_cards_own_product(part: str) -> None:
    facts = gpu_steps.step_cost("cpu", None, 8 if part.startswith("busi") else 1, part)
    assert facts["workload"] == part.split(",")[0] and facts["seconds"] > 0 and facts["gflop"] > 0
    assert (
        facts["share"] * gpu_parts.matmul_gflops(facts["precision"], "cpu")
        > 0.01 * facts["gflop"] / facts["seconds"]
    )


def test_every_workload_is_what_it_is_called() -> None:
    assert gpu_steps.workload_config("busi256 llm4seg").data.img_size == (256, 256)
    hybrid = gpu_steps.workload_config("paper medvisionllama_v3")
    assert hybrid.data.img_size == (128, 128, 128) and hybrid.train.batch_size == 4
    settings = json.loads((Path(hybrid.model.token_block.source) / "config.json").read_text())
    assert settings["hidden_size"] == 4096 and hybrid.model.token_block.kind == "random"
    steps = gpu_steps.step_parts("clone")
    assert (
        len(set(steps)) == 7 * 9
        and all("eager" in step for step in steps[:21])
        and all("compiled" in step for step in steps[-21:])
    )


def test_the_card_is_described(capsys: pytest.CaptureFixture[str]) -> None:
    gpu_probes.main(
        "facts",
        json.dumps(
            {"parts": [""], "device": "cpu", "small": True, "released": None, "data_dir": None}
        ),
    )
    begun, found = told(capsys)
    assert begun == {"begin": ""} and found["state"] == "done"
    facts = found["facts"]
    assert (
        isinstance(facts, dict)
        and facts["matmul_fp32_tflops"] > 0
        and facts["on_device_gb_s"] > 0
        and "driver" not in facts
    )


def test_a_precision_that_a_card_only_emulates_is_refused_and_costs_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def only_fp32(precision: str, device: torch.device) -> None:
        if precision != "fp32":
            raise files.RunError(f"Tesla T4 emulates {precision}")

    monkeypatch.setattr(gpu_parts, "check_precision", only_fp32)
    assert gpu_parts.refused("fp32", "cuda") == "" and gpu_parts.refused("bf16", "cpu") == ""
    refusal = gpu_steps.step_cost("cuda", None, 1, "hippocampus vit_baseline, bf16, eager")
    assert refusal == {"state": "refused", "error": "Tesla T4 emulates bf16"}
    monkeypatch.setattr(
        gpu_probes,
        "refused",
        lambda precision, device: only_fp32.__name__ if precision == "bf16" else "",
    )
    facts = gpu_probes.agreement("cpu", "unet_plain")
    assert facts["state"] == "done" and "bf16_logits" not in facts
