"""Each run has a card of its own: slots are shared out over processes, and freed by whatever ends a
process."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from mvl.core import files
from mvl.core.config import ROOT
from mvl.study import gpu_slots


@pytest.fixture
def two_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with cards 0 and 1, whose slots nobody else uses."""
    monkeypatch.setattr(gpu_slots, "visible_gpus", lambda: ("0", "1"))
    monkeypatch.setattr(gpu_slots, "slots_folder", lambda: tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpu_slots, "WAIT_S", 0.01)


@pytest.mark.parametrize(
    ("named", "cards"),
    [
        ("2,3", ("2", "3")),
        ("", ()),
        ("-1", ()),
        ("1,-1,2", ("1",)),
        ("MIG-5a, GPU-7b", ("MIG-5a", "GPU-7b")),
    ],
)
def test_the_variable_of_cuda_says_which_cards_there_are(
    named: str, cards: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert gpu_slots.visible_gpus() == cards


def test_without_the_variable_the_driver_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 0; echo 1; echo 2\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert gpu_slots.visible_gpus() == ("0", "1", "2")
    tool.write_text("#!/bin/sh\necho 'no devices were found'; exit 6\n")
    assert gpu_slots.visible_gpus() == ()


def test_first_each_card_then_each_a_second_time(two_cards: None) -> None:
    with gpu_slots.one_gpu(2) as a, gpu_slots.one_gpu(2) as b, gpu_slots.one_gpu(2) as c:
        assert (a, b, c) == ("0", "1", "0") and os.environ["CUDA_VISIBLE_DEVICES"] == "0"
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_a_run_waits_for_a_card_and_says_so(
    two_cards: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, waits = gpu_slots.one_gpu(), gpu_slots.one_gpu(), []
    assert [first.__enter__(), second.__enter__()] == ["0", "1"]

    def card_1_is_freed(seconds: float) -> None:
        waits.append(seconds)
        second.__exit__(None, None, None)

    monkeypatch.setattr(gpu_slots.time, "sleep", card_1_is_freed)
    with gpu_slots.one_gpu() as card:
        assert card == "1" and waits == [0.01]
    assert "waiting for a free GPU (2 slots are held)" in capsys.readouterr().err
    first.__exit__(None, None, None)


def test_another_process_gets_the_other_card_and_frees_it_when_it_is_killed(
    two_cards: None, tmp_path: Path
) -> None:
    """The other process holds a slot by the same locks; killing it frees the slot."""
    code = (
        "import sys; from pathlib import Path; from mvl.study import"
        " gpu_slots\ngpu_slots.visible_gpus = lambda: ('0', '1'); gpu_slots.slots_folder = lambda:"
        " Path(sys.argv[1])\nwith gpu_slots.one_gpu() as card:\n print(card, flush=True);"
        " sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout is not None and other.stdout.readline() == "0\n"
    with gpu_slots.one_gpu() as card:
        assert card == "1"
    other.kill()
    other.wait()
    with gpu_slots.one_gpu() as card:
        assert card == "0"


@pytest.mark.parametrize("case", ["no card", "torchrun", "not asked"])
def test_no_slot_is_taken_where_none_is_needed(
    case: str, two_cards: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if case == "no card":
        monkeypatch.setattr(gpu_slots, "visible_gpus", lambda: ())
    if case == "torchrun":
        monkeypatch.setenv("RANK", "0")
    with gpu_slots.one_gpu(0 if case == "not asked" else 1) as card:
        assert card == "" and "CUDA_VISIBLE_DEVICES" not in os.environ
    assert list(tmp_path.iterdir()) == []


def test_a_process_in_which_cuda_runs_stays_on_its_card(
    two_cards: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with gpu_slots.one_gpu(), gpu_slots.one_gpu() as card:
        assert card == "1"
    monkeypatch.setattr(gpu_slots, "_cuda_runs", lambda: True)
    with gpu_slots.one_gpu() as again:
        assert again == "1"


def test_a_folder_that_cannot_be_written_is_an_error_and_no_endless_wait(
    two_cards: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(gpu_slots, "slots_folder", lambda: tmp_path / "file")
    with pytest.raises(files.RunError, match="cannot be written"), gpu_slots.one_gpu():
        pass


@pytest.mark.parametrize(
    ("running", "answers", "lost"),
    [(False, False, False), (True, True, False), (True, False, True)],
)
def test_a_gpu_that_no_longer_answers_is_noticed(
    running: bool, answers: bool, lost: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def synchronize() -> None:
        if not answers:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    cuda = types.SimpleNamespace(is_initialized=lambda: running, synchronize=synchronize)
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=cuda))
    assert gpu_slots.gpu_is_lost() is lost
