"""Checkpoints are whole or passed over, never half-read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mvl.core import files
from mvl.training import checkpoints


def test_newest_whole_checkpoint_wins_and_two_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoints.save(tmp_path, step, {"step": step})
    assert len(checkpoints.found(tmp_path)) == 2
    assert checkpoints.load(tmp_path) == {"step": 3}


@pytest.mark.parametrize("fault", ["flip", "cut", "empty"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(
    tmp_path: Path, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints.save(tmp_path, 1, {"step": 1})
    path = checkpoints.save(tmp_path, 2, {"step": 2, "x": torch.ones(100)})
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes({"flip": bytes(data), "cut": bytes(data[:-5]), "empty": b""}[fault])
    assert checkpoints.load(tmp_path) == {"step": 1}
    assert path.name in capsys.readouterr().err


def test_none_whole_is_an_error_not_a_fresh_start(tmp_path: Path) -> None:
    checkpoints.save(tmp_path, 1, {"step": 1}).write_bytes(b"")
    with pytest.raises(files.RunError, match="no checkpoint is whole"):
        checkpoints.load(tmp_path)
    assert checkpoints.load(tmp_path / "new") is None


def test_weights_repeat_to_the_byte_and_are_checked(tmp_path: Path) -> None:
    state = {"b": torch.randn(3, 4), "a": torch.arange(5.0)}
    for name in ("one", "two"):
        checkpoints.save_weights(
            tmp_path / name / "weights.safetensors",
            dict(reversed(state.items())) if name == "two" else state,
        )
    one, two = tmp_path / "one" / "weights.safetensors", tmp_path / "two" / "weights.safetensors"
    assert one.read_bytes() == two.read_bytes()
    files.write_json(
        tmp_path / "one" / "status.json",
        {"state": "done", "files": {"weights.safetensors": files.sha256_file(one)}},
    )
    assert torch.equal(checkpoints.load_weights(tmp_path / "one")["b"], state["b"])
    one.write_bytes(one.read_bytes()[:-1] + b"\x01")
    with pytest.raises(files.RunError, match="sha256 differs"):
        checkpoints.load_weights(tmp_path / "one")
