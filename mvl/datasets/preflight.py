"""What a run may trust before its first step: files with the bytes that were checked, a split that
nothing leaks through, test cases closed.

Every file of the split has the sha256 of its manifest. A file that no publisher's manifest vouches
for is looked at whole, scans in a bounded process (see sandbox.py), once: its verdict is kept by
sha256 in `checked/` beside the data.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mvl.core.files import RunError, sha256_bytes, sha256_file, write_json
from mvl.datasets import picture_faults, sandbox
from mvl.datasets.split_groups import patients
from mvl.datasets.splits import Split, split_name, split_path
from mvl.datasets.task import Case, TaskError
from mvl.datasets.task_data import TaskData
from mvl.datasets.verify import same_everywhere

RULES = 2
"""Number of the rules that a kept verdict follows; raise it when the checks of nifti.py or
verify.py become stricter."""
_CLOSED: set[Path] = set()
_SOUND: dict[str, str] = {}


def check_inputs(data: TaskData, split: Split, run_folder: Path, kind: str = "folds") -> None:
    """Nothing when every file of the split is what was checked, and no scan or patient lies on two
    of its sides; `kind`: `data.split`.

    Raises:
        TaskError: names file or cases, and the remedy.
        RunError: the run was begun with another split.
    """
    keep_split(run_folder, split)
    sides = case_sides(data, split, kind)
    data = data.whole
    folder = data.folder
    cases = [case for case in data.cases if case.case_id in sides]
    hashes = {path: sha256_file(path) for case in cases for path in files_of(case)}
    check_hashes(data, hashes)
    if data.task.own:
        scans = sound_voxels(data, cases, hashes, keep=True)
        if fault := same_everywhere(data.task, cases):
            raise TaskError(f"{folder}: {fault}")
    else:
        scans = known_voxels(data, cases, hashes)
    if pair := on_two_sides(sides, scans):
        raise TaskError(
            f"{folder}: {pair} hold the same scan under two names; keep one of"
            f" them{_deal_anew(data, kind)}"
        )
    keys = patients(folder, [case.case_id for case in data.cases])
    if pair := on_two_sides(sides, {case: keys[case] for case in sides if case in keys}):
        raise TaskError(
            f"{folder / 'dataset.json'}: {pair} are of one patient; correct `patients`"
            f" there{_deal_anew(data, kind)}"
        )


def _deal_anew(data: TaskData, kind: str) -> str:
    where = split_path(data, kind)
    if data.task.own:
        return f", then delete {where} to deal anew"
    return f", see `{data.task_command('verify')}`; then restore or deal anew {where.name}"


def keep_split(run_folder: Path, split: Split) -> None:
    """Write the split's sha256 into the run folder at its first start, and check it at each further
    one.

    Raises:
        RunError: another split began the run.
    """
    path = run_folder / "split.json"
    try:
        begun = json.loads(path.read_text())["sha256"]
    except FileNotFoundError:
        write_json(path, {"sha256": split.sha256})
        return
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{path}: cannot be read ({type(error).__name__}); delete {run_folder} to start anew"
        ) from error
    if begun != split.sha256:
        raise RunError(
            f"{path}: the run was begun with another split (sha256 {begun[:12]}..., now"
            f" {split.sha256[:12]}...); restore data/splits, or delete {run_folder} to start anew"
        )


def case_sides(data: TaskData, split: Split, kind: str = "folds") -> dict[str, str]:
    """Case id -> train, val or test; of a task of slices, the volumes."""
    sides: dict[str, str] = {}
    for side, listed in (("train", split.train), ("val", split.val), ("test", split.test)):
        for item in listed:
            case = item.rpartition("_z")[0] if data.task.layout == "slices" else item
            if sides.setdefault(case, side) != side:
                raise TaskError(
                    f"{data.task.name}: case {case} is in {sides[case]} and in {side}; restore"
                    f" {split_name(data.whole.task.name, kind)}"
                )
    return sides


def files_of(case: Case) -> tuple[Path, ...]:
    """Every file of a case."""
    return (*case.images, case.label, *case.more_labels)


def check_hashes(data: TaskData, hashes: dict[Path, str]) -> None:
    """Nothing when each file has the sha256 of the manifest, where there is one.

    Raises:
        TaskError: names the first file that has not, and how many there are.
    """
    manifest, folder = data.manifest, data.folder
    odd = [
        path
        for path, digest in hashes.items()
        if manifest and manifest.get(path.relative_to(folder).as_posix()) != digest
    ]
    if odd:
        wanted = manifest.get(odd[0].relative_to(folder).as_posix(), "none")
        raise TaskError(
            f"{odd[0]}: its bytes differ from the manifest's sha256 ({hashes[odd[0]][:12]}...,"
            f" expected {wanted[:12]}...), as do {len(odd) - 1} more; run"
            f" `{data.task_command('verify')}` for the list and the remedy"
        )


def known_voxels(data: TaskData, cases: Iterable[Case], hashes: dict[Path, str]) -> dict[str, str]:
    """Case id -> sha256 of its voxels as the committed manifest has it, where the bytes are that
    manifest's; else of its image files."""
    record = json.loads(data.committed.read_text()) if data.committed.is_file() else {}
    voxels, files = record.get("voxels", {}), record.get("files", {})

    out = {}
    for case in cases:
        same = all(
            files.get(image.relative_to(data.folder).as_posix()) == hashes[image]
            for image in case.images
        )
        whole = " ".join(hashes[image] for image in case.images)
        out[case.case_id] = voxels.get(case.case_id, whole) if same else whole
    return out


def sound_voxels(
    data: TaskData, cases: Iterable[Case], hashes: dict[Path, str], keep: bool = False
) -> dict[str, str]:
    """Case id -> sha256 of its voxels, after a look at each case that is not yet known by its
    files' sha256; `keep` writes the verdicts.

    Raises:
        TaskError: a file cannot be used; names it and the remedy.
    """
    task, fresh = data.task, {}
    kept = data.folder.parent / "checked" / f"{task.name}.json"
    rules = [RULES, task.channels, sorted(task.labels)]
    keys = {
        case: sha256_bytes(json.dumps([*rules, [hashes[path] for path in files_of(case)]]).encode())
        for case in cases
    }
    if kept.is_file() and not _SOUND.keys() >= set(keys.values()):
        with suppress(OSError, ValueError, KeyError, TypeError):
            _SOUND.update(json.loads(kept.read_text())["sound"])
    for case, key in keys.items():
        if key not in _SOUND:
            faults, digest = _look_at(data, case)
            for path, fault in faults.items():
                raise TaskError(
                    f"{path}: {fault}; put the file right, or take its case out of the folder "
                    f"(run `{data.task_command('verify')}` for all such files)"
                )
            _SOUND[key] = str(digest)
        fresh[key] = _SOUND[key]
    if keep:
        _keep(kept, fresh)
    return {case.case_id: _SOUND[key] for case, key in keys.items()}


def _look_at(data: TaskData, case: Case) -> tuple[dict[Path, str], str | None]:
    """The faults that `mvl verify` would find in a case, and the sha256 of what its image shows."""
    if data.task.dims == 3:
        return sandbox.check_case(data.task, case, data.folder, data.manifest)
    faults, digest = picture_faults.case_faults(data, case)
    return dict(faults), digest


def _keep(path: Path, fresh: dict[str, str]) -> None:
    """Add verdicts to those kept; where nothing can be written, they hold for this process
    alone."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        old = json.loads(path.read_text())["sound"] if path.is_file() else {}
        if not fresh.keys() <= old.keys():
            write_json(path, {"sound": old | fresh})


def on_two_sides(sides: dict[str, str], keys: dict[str, str]) -> str:
    """The first two cases with the same key on different sides, each with its side; empty where
    there are none."""
    homes: dict[str, str] = {}
    for case, key in sorted(keys.items()):
        first = homes.setdefault(key, case)
        if sides[first] != sides[case]:
            return f"{first} ({sides[first]}) and {case} ({sides[case]})"
    return ""


@contextmanager
def closed(cases: Iterable[Case]) -> Iterator[None]:
    """While the block runs, no store gives the image or label of these cases (but see
    released_faults.py)."""
    paths = {case.image for case in cases} - _CLOSED
    _CLOSED.update(paths)
    try:
        yield
    finally:
        _CLOSED.difference_update(paths)


def refuse_closed(case: Case) -> None:
    """Nothing unless the case is closed.

    Raises:
        TaskError: training asked for a test case.
    """
    if case.image in _CLOSED:
        raise TaskError(
            f"{case.image}: a test case, closed until the run's weights are chosen; train and"
            " select on the split's train and val alone"
        )
