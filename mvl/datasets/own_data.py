"""Your own data as a task without a row in the registry: NIfTI pairs in nnU-Net v2's or the
Decathlon's layout, or pictures with masks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mvl.datasets.decathlon import read_cases
from mvl.datasets.task import OWN, Case, Task, TaskError, case_name, composed, data_root, is_stray

ENDINGS = (".nii.gz", ".nii")
NSD_TOLERANCE_MM = 2.0
"Tolerance of the normalised surface distance where dataset.json gives no `nsd_tolerance_mm`."
SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"Names that may be part of a run's path."


def own_task(name: str, data_dir: Path | None = None) -> Task | None:
    """The task in the folder `name` of the data folder, described by its own dataset.json; nothing
    where there is no such folder.

    Raises:
        TaskError: the folder is there and cannot be used; names file and remedy.
    """
    folder = data_root(data_dir) / name
    if not name or name.startswith(".") or len(Path(name).parts) != 1 or not folder.is_dir():
        return None
    if not SAFE.fullmatch(name):
        raise TaskError(
            f"{folder}: runs are named after this folder; rename it with letters, digits, `_`, `-`"
            " and `.` alone"
        )
    path = folder / "dataset.json"
    described = read_description(path) if path.exists() else {}
    if not described.keys() & {"labels", "channel_names", "modality"} and (pairs := _pairs(folder)):
        return pairs
    from mvl.datasets.pictures import list_pairs

    if not described and (broken := list_pairs(folder).broken):
        raise TaskError(
            f"{broken[0][0]}: {broken[0][1]} ({len(broken)} such); a picture x.png needs its mask"
            " as masks/x.png beside images/x.png, or as x_mask.png beside it"
        )
    described = described or read_description(path)
    channels, labels = read_channels(described, path), read_labels(described, path)
    cases = (read_nnunet if is_nnunet(described) else read_cases)(folder)
    return Task(
        name=name,
        title=str(described.get("name", name)),
        modality=", ".join(channels),
        channels=channels,
        labels=labels,
        url="",
        md5="",
        bytes=0,
        num_cases=len(cases),
        licence=OWN,
        citation="",
        nsd_tolerance_mm=_tolerance(described, path),
        layout="nnunet" if is_nnunet(described) else "decathlon",
    )


def _pairs(folder: Path) -> Task | None:
    """The task in a folder of pictures with masks (see pictures.py), grey or coloured as its first
    picture is; sizes and distances in pixels."""
    from mvl.datasets.nifti import FileFault
    from mvl.datasets.pictures import list_pairs, open_picture

    cases = list_pairs(folder).cases
    if not cases:
        return None
    try:
        colour = open_picture(cases[0].image).mode in ("RGB", "RGBA", "P", "CMYK", "YCbCr")
    except FileFault as fault:
        raise TaskError(
            f"{cases[0].image}: {fault}; get the file again, or remove the case"
        ) from fault
    return Task(
        name=folder.name,
        title=folder.name,
        modality="picture",
        channels=("red", "green", "blue") if colour else ("grey",),
        labels={1: "structure"},
        url="",
        md5="",
        bytes=0,
        num_cases=len(cases),
        licence=OWN,
        citation="",
        nsd_tolerance_mm=NSD_TOLERANCE_MM,
        dims=2,
        layout="pairs",
        unit="px",
    )


def read_description(path: Path) -> dict[str, Any]:
    """What a dataset.json says.

    Raises:
        TaskError: missing, or not JSON with a mapping at the top.
    """
    try:
        described = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise TaskError(
            f"{path}: missing; own data need one in nnU-Net v2's or the Decathlon's layout (see the"
            " book, Your own data)"
        ) from None
    except (OSError, ValueError) as error:
        raise TaskError(
            f"{path}: cannot be read ({type(error).__name__}: {error}); correct the file"
        ) from error
    if not isinstance(described, dict):
        raise TaskError(f"{path}: expected a mapping at the top; correct the file")
    return described


def read_channels(described: dict[str, Any], path: Path) -> tuple[str, ...]:
    """Channel names in order, from `channel_names` (nnU-Net v2) or `modality` (Decathlon)."""
    names = described.get("channel_names", described.get("modality"))
    if isinstance(names, list):
        names = {str(index): name for index, name in enumerate(names)}
    if not isinstance(names, dict) or not names:
        raise TaskError(f'{path}: lacks channel_names; add e.g. "channel_names": {{"0": "T1w"}}')
    wanted = [str(index) for index in range(len(names))]
    if sorted(names) != sorted(wanted):
        raise TaskError(
            f"{path}: channel_names has the keys {', '.join(names)}, expected {', '.join(wanted)};"
            " number the channels from 0"
        )
    return tuple(str(names[key]) for key in wanted)


def read_labels(described: dict[str, Any], path: Path) -> dict[int, str]:
    """Foreground values and their names, from name: value (nnU-Net v2) or value: name
    (Decathlon)."""
    rows = described.get("labels")
    if not isinstance(rows, dict) or not rows:
        raise TaskError(
            f'{path}: lacks labels; add e.g. "labels": {{"background": 0, "lesion": 1}}'
        )
    if all(str(key).isdigit() and isinstance(value, str) for key, value in rows.items()):
        rows = {name: int(value) for value, name in rows.items()}
    for name, value in rows.items():
        if isinstance(value, list):
            raise TaskError(
                f"{path}: label {name!r} is a region of {value}; regions are not supported: give"
                " each structure its own value"
            )
        if isinstance(value, str) and value.isdigit():
            rows = rows | {name: (value := int(value))}
        if not isinstance(value, int) or isinstance(value, bool):
            raise TaskError(f"{path}: label {name!r} has the value {value!r}; write a whole number")
    if "ignore" in rows:
        raise TaskError(
            f"{path}: the label `ignore` is not supported; leave out the cases that use it"
        )
    values = sorted(rows.values())
    if values != list(range(len(values))) or len(values) < 2:
        raise TaskError(
            f"{path}: labels have the values {values}; number them 0 (background), 1, 2, ..."
            " without a gap, here and in the label files"
        )
    return {value: name for name, value in sorted(rows.items(), key=lambda row: row[1]) if value}


def _tolerance(described: dict[str, Any], path: Path) -> float:
    value = described.get("nsd_tolerance_mm", NSD_TOLERANCE_MM)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1000:
        raise TaskError(f"{path}: nsd_tolerance_mm is {value!r}; write millimetres, e.g. 2.0")
    return float(value)


def is_nnunet(described: Any) -> bool:
    """True for the content of a dataset.json that lists no cases, so that they are found by
    nnU-Net's file names."""
    return isinstance(described, dict) and "training" not in described


def read_nnunet(folder: Path) -> list[Case]:
    """Labelled cases of a folder in nnU-Net v2's layout, sorted: labelsTr/CASE.nii.gz with
    imagesTr/CASE_0000.nii.gz, one file per channel.

    The image files of a case need not be there.

    Raises:
        TaskError: dataset.json lacks something, an image has no label, a file belongs to no
            channel, or there are not numTraining cases.
    """
    path = folder / "dataset.json"
    described = read_description(path)
    channels, ending = len(read_channels(described, path)), described.get("file_ending")
    if ending not in ENDINGS:
        raise TaskError(
            f"{path}: file_ending is {ending!r}, expected .nii.gz or .nii; convert the files to"
            " NIfTI, or add the key"
        )
    if "dataset" in described:
        raise TaskError(
            f"{path}: an explicit `dataset` mapping is not read; put the files into imagesTr and"
            " labelsTr and take the key out"
        )
    cases = _found(folder, ending, channels)
    if not isinstance(described.get("numTraining"), int):
        raise TaskError(f'{path}: lacks numTraining, a number; write "numTraining": {len(cases)}')
    if described["numTraining"] != len(cases):
        raise TaskError(
            f"{path}: numTraining is {described['numTraining']}, labelled cases are {len(cases)};"
            " bring back the rest, or correct it"
        )
    return cases


def _found(folder: Path, ending: str, channels: int) -> list[Case]:
    """Cases by their label files, after a look for images that no label or channel asks for."""
    labels = {composed(case_name(p.name)): p for p in _files(folder / "labelsTr", ending)}
    there = {composed(case_name(p.name)): p for p in _files(folder / "imagesTr", ending)}
    images = {
        name: [
            there.get(f"{name}_{channel:04d}")
            or folder / "imagesTr" / f"{name}_{channel:04d}{ending}"
            for channel in range(channels)
        ]
        for name in sorted(labels)
    }
    wanted = {path for paths in images.values() for path in paths}
    odd = [path for path in _files(folder / "imagesTr", ending) if path not in wanted]
    for path in odd:
        case, _, channel = case_name(path.name).rpartition("_")
        if not re.fullmatch(r"\d{4}", channel):
            new = f"{case_name(path.name)}_0000{ending}"
            raise TaskError(
                f"{path}: the name does not end in a channel number; rename it to {new} ({len(odd)}"
                " such files)"
            )
        if case in images:
            raise TaskError(
                f"{path}: channel {int(channel)} is not in channel_names ({channels} channels); add"
                " it there, or remove the file"
            )
        raise TaskError(
            f"{path}: no label labelsTr/{case}{ending}; add it, or move the image to imagesTs"
            f" ({len(odd)} such files)"
        )
    return [
        Case(name, paths[0], labels[name], more=tuple(paths[1:])) for name, paths in images.items()
    ]


def _files(folder: Path, ending: str) -> list[Path]:
    if not folder.is_dir():
        raise TaskError(
            f"{folder}: no such folder; nnU-Net's layout has imagesTr and labelsTr beside"
            " dataset.json"
        )
    return sorted(
        path
        for path in folder.iterdir()
        if path.name.lower().endswith(ending) and not is_stray(path.name)
    )
