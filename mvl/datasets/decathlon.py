"""Cases in the Medical Segmentation Decathlon's layout, read from `dataset.json`."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from mvl.datasets.task import Case, TaskError, case_name, composed, is_stray


def read_cases(folder: Path) -> list[Case]:
    """Cases that `folder/dataset.json` lists, sorted by case id; the files themselves are not
    looked at, but for nnU-Net v1's.

    nnU-Net v1 lists `imagesTr/CASE.nii.gz` and keeps one file a channel, `CASE_0000.nii.gz`: where
    the listed file is not there, those are taken. An `image` may also be the list of its channels'
    files.
    """
    path = folder / "dataset.json"
    try:
        described = json.loads(path.read_text(encoding="utf-8-sig"))
        rows = [(_listed(row["image"]), str(row["label"])) for row in described["training"]]
        named = described.get("channel_names", described.get("modality"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TaskError(
            f"{path}: not a Decathlon dataset.json ({type(error).__name__}: {error}); list each"
            ' case as {"image": "./imagesTr/CASE.nii.gz", "label": "./labelsTr/CASE.nii.gz"}'
        ) from error
    channels = len(named) if isinstance(named, dict | list) else 1
    cases = []
    for images, label in rows:
        files = [_inside(folder, image) for image in images]
        if is_stray(files[0].name):
            continue
        name = composed(case_name(files[0].name))
        if len(files) > 1:
            if len(files) != channels:
                raise TaskError(
                    f"{path}: case {name} lists {len(files)} images for {channels} channels; list"
                    " one file for each channel, in order"
                )
            name = re.sub(r"_\d{4}$", "", name)
        elif not files[0].is_file():
            files = _channel_files(files[0], channels) or files
        cases.append(Case(name, files[0], _inside(folder, label), more=tuple(files[1:])))
    ids = [case.case_id for case in cases]
    if twice := sorted({name for name in ids if ids.count(name) > 1}):
        raise TaskError(f"{path}: case {twice[0]} is listed twice; list each case once")
    return sorted(cases, key=lambda case: case.case_id)


def _listed(image: object) -> list[str]:
    """Return the image files that a row lists: one, or one for each channel."""
    files = image if isinstance(image, list) else [image]
    names = [file for file in files if isinstance(file, str)]
    if not names or len(names) < len(files):
        raise TypeError(f"image is {image!r}, neither a file nor a list of files")
    return names


def _channel_files(image: Path, channels: int) -> list[Path]:
    """Return nnU-Net's files of the channels of a listed image, where they are all there."""
    name = case_name(image.name)
    ending = image.name.removeprefix(name)
    files = [image.with_name(f"{name}_{channel:04d}{ending}") for channel in range(channels)]
    return files if all(file.is_file() for file in files) else []


def _inside(folder: Path, relative: str) -> Path:
    """Return a listed file's path, which must stay in the folder as it is written.

    Where links in the folder lead is the user's business: DataLad and shared stores keep every file
    behind one.
    """
    # Windows writes `\\` between folders.
    path = Path(os.path.normpath(folder / relative.replace("\\", "/")))
    if os.path.isabs(relative) or not path.is_relative_to(os.path.normpath(folder)):
        raise TaskError(
            f"{folder / 'dataset.json'}: {relative!r} leaves the folder; do not use this copy,"
            " fetch the task again"
        )
    return path if path.exists() else _of_that_name(path)


def _of_that_name(path: Path) -> Path:
    """Return the file that is called so, whether its accents are characters of their own or not."""
    if path.name.isascii() or not path.parent.is_dir():
        return path
    wanted = composed(path.name)
    return next((one for one in path.parent.iterdir() if composed(one.name) == wanted), path)
