"""A bounded process looks at files: same answers as here, and its death, silence or want of memory
is the file's fault."""

from __future__ import annotations

import pytest

from mvl.datasets import checks, sandbox
from mvl.datasets.decathlon import read_cases
from mvl.datasets.nifti import FileFault
from mvl.datasets.sandbox import Child


def first_case(toy):
    task, root = toy
    return task, read_cases(root / "Toy")[0], root / "Toy"


def test_it_says_what_would_be_said_here(toy):
    task, case, folder = first_case(toy)
    assert sandbox.check_case(task, case, folder, {}) == checks.check_case(task, case, folder, {})
    sandbox.check_scan((case.image,), task)
    case.image.write_bytes(b"")
    assert sandbox.check_case(task, case, folder, {}) == ({case.image: "empty file"}, None)
    with pytest.raises(FileFault, match=r"phantom_000.nii.gz: empty file; put the file right"):
        sandbox.check_scan((case.image,), task)


def test_its_death_silence_and_want_of_memory_are_faults_and_the_next_question_is_answered(
    toy, monkeypatch
):
    task, case, folder = first_case(toy)
    quick, by = Child(time_s=0.0), Child()
    assert (
        "could not be read within 0 s"
        in sandbox.check_case(task, case, folder, {}, quick)[0][case.image]
        and quick.process is None
    )
    monkeypatch.setattr(
        sandbox, "SERVE", "import os, sys, time; sys.stdin.readline(); os.kill(os.getpid(), 9)"
    )
    assert "ended (signal 9" in sandbox.check_case(task, case, folder, {}, by)[0][case.image]
    with pytest.raises(
        FileFault,
        match=r"phantom_000.nii.gz: the process that read it ended \(signal 9.*put the file right",
    ):
        sandbox.check_scan((case.image,), task, by)
    monkeypatch.undo()
    assert sandbox.check_case(task, case, folder, {}, by)[0] == {}
    by.close()


def test_want_of_memory_is_named(toy, monkeypatch):
    task, case, _ = first_case(toy)

    def greedy(*_):
        raise MemoryError

    monkeypatch.setattr(checks, "check_case", greedy)
    question = {
        "about": "case",
        "task": sandbox.dataclasses.asdict(task),
        "case": {"image": str(case.image)},
    }
    monkeypatch.setattr(sandbox, "_case", greedy)
    assert sandbox._answer(question, 2**30)["faults"] == [
        (str(case.image), "needs more than 1 GiB of memory to be looked at")
    ]
