"""Make a reduced copy of a public data set, as data/registry.toml describes it, from what its page
gives.

    python workflow/reduce_data.py SET SOURCE TARGET

SET is isic, ph2, kvasir, cvc, heart, atrium or hippocampus; SOURCE the folder in which its archives
were unpacked; TARGET the folder of the task folders (`MVL_DATA`). The recorded copies were not made
by this very script: pixels agree up to resampling and compression, bytes do not, so `mvl verify`
calls a copy made here another one. `atrium` needs h5py. `hippocampus` alone copies bytes as they
are: its 40 scans are those of `data/scans`.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image

from mvl.core.seeds import draw_seed

SIDE = 256
PICTURES = {
    "isic": ("ISIC2017_256", "ISIC-2017_Training_Data/ISIC_???????.jpg", "{}_segmentation.png"),
    "ph2": ("PH2_256", "IMD*_Dermoscopic_Image/IMD???.bmp", "{}_lesion.bmp"),
    "kvasir": ("Kvasir_SEG_256", "images/*.jpg", "masks/{}.jpg"),
    "cvc": ("CVC_ClinicDB_256", "Original/*.tif*", "Ground Truth/{}.tif*"),
}
"SET: name of the task, where its images lie below SOURCE, and the mask of an image by its case."
VOLUMES = {"heart": ("Task02_Heart_half", "MRI"), "atrium": ("LeftAtrium2018_half", "LGE-MRI")}
SUBSETS = {"hippocampus": ("Task04_Hippocampus", 40)}
"SET: the task of which one scan each of so many persons is taken."


def main(name: str, source: Path, target: Path) -> Path:
    """Write the reduced copy of the set `name` and return its folder."""
    if name in PICTURES:
        return reduce_pictures(name, source, target / PICTURES[name][0])
    if name in SUBSETS:
        task, persons = SUBSETS[name]
        return take_scans(task, persons, source, target / f"{task}_{persons}")
    return reduce_volumes(name, source, target / VOLUMES[name][0])


def find(source: Path, pattern: str) -> list[Path]:
    """Return the files that a pattern names at any depth below `source`, sorted; end with a message
    where there is none."""
    if not (paths := sorted(source.rglob(pattern))):
        sys.exit(f"{source}: no {pattern} in it; give the folder in which the set was unpacked")
    return paths


def reduce_pictures(name: str, source: Path, folder: Path) -> Path:
    """Write `images/<case>.jpg` and `masks/<case>.png`: sides of 256 pixels, of PH2 the longer
    side."""
    _, images, masks = PICTURES[name]
    originals = find(source, images)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for path in originals:
        [mask_path] = find(source, masks.format(path.stem))
        image, mask = Image.open(path).convert("RGB"), Image.open(mask_path).convert("L")
        size = (SIDE, SIDE)
        if name == "ph2":
            scale = SIDE / max(image.size)
            size = (round(image.width * scale), round(image.height * scale))
        image.resize(size, Image.Resampling.LANCZOS).save(
            folder / "images" / f"{path.stem}.jpg", quality=90
        )
        # A JPEG of a mask has grey edges: one half decides, before the size changes.
        mask = mask.point(lambda value: 255 * (value >= 128))
        mask.resize(size, Image.Resampling.NEAREST).save(folder / "masks" / f"{path.stem}.png")
    return folder


def reduce_volumes(name: str, source: Path, folder: Path) -> Path:
    """Write `imagesTr`, `labelsTr` and `dataset.json` with every volume at half its resolution."""
    task, modality = VOLUMES[name]
    rows = []
    for case, image, label, affine in (heart_volumes if name == "heart" else atrium_volumes)(
        source
    ):
        small = affine.copy()
        small[:3, :3] *= 2
        # The centre of the first 2 x 2 x 2 block lies half a voxel inside.
        small[:3, 3] += affine[:3, :3].sum(1) / 2
        row = {"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"}
        parts = (halved(image).astype(np.float32), (halved(label) >= 0.5).astype(np.uint8))
        for key, voxels in zip(row, parts):
            path = folder / row[key]
            path.parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(voxels, small), path)
        rows.append(row)
    facts = {
        "name": task,
        "modality": {"0": modality},
        "labels": {"0": "background", "1": "left atrium"},
        "numTraining": len(rows),
        "training": rows,
    }
    (folder / "dataset.json").write_text(json.dumps(facts, indent=1))
    return folder


def take_scans(task: str, persons: int, source: Path, folder: Path) -> Path:
    """Copy one scan each of so many persons, and write the `dataset.json` that lists them alone."""
    [listed] = find(source, "dataset.json")
    facts = json.loads(listed.read_text())
    rows = {row["image"].split("/")[-1].removesuffix(".nii.gz"): row for row in facts["training"]}
    chosen = [rows[case] for case in cases_of_persons(task, persons, rows)]
    for row in chosen:
        for key in ("image", "label"):
            path = folder / row[key]
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(listed.parent / row[key], path)
    facts |= {"numTraining": persons, "numTest": 0, "training": chosen, "test": []}
    (folder / "dataset.json").write_text(json.dumps(facts, indent=1) + "\n")
    return folder


def cases_of_persons(task: str, persons: int, cases: Iterable[str]) -> list[str]:
    """Return one case each of so many persons, sorted.

    The cases are walked by sha256 of (seed 0, 'subset', task, case); one is taken when its person
    (numbers 2k-1 and 2k) has none yet, so that the side of the person is drawn too.
    """
    taken: dict[int, str] = {}
    for case in sorted(cases, key=lambda case: draw_seed(0, "subset", task, case)):
        if len(taken) < persons:
            taken.setdefault((int(case.rpartition("_")[2]) + 1) // 2, case)
    return sorted(taken.values())


Volume = tuple[str, np.ndarray, np.ndarray, np.ndarray]


def heart_volumes(source: Path) -> Iterator[Volume]:
    """Yield case, image, label and affine of Task02_Heart, cut to the central 256 x 256."""
    for path in find(source, "imagesTr/la_*.nii.gz"):
        scan = nibabel.load(path)
        label = nibabel.load(path.parents[1] / "labelsTr" / path.name)
        corner = [(side - SIDE) // 2 for side in scan.shape[:2]]
        box = tuple(slice(start, start + SIDE) for start in corner)
        affine = scan.affine.copy()
        affine[:3, 3] += affine[:3, :2] @ corner
        case = path.name.removesuffix(".nii.gz")
        yield case, np.asarray(scan.dataobj)[box], np.asarray(label.dataobj)[box], affine


def atrium_volumes(source: Path) -> Iterator[Volume]:
    """Yield case, image, label and affine of `<case>/mri_norm2.h5`, which are cropped by their
    labels already."""
    try:
        import h5py
    except ImportError:
        sys.exit("atrium needs the package h5py; run `pip install h5py` and try again")

    for path in find(source, "mri_norm2.h5"):
        with h5py.File(path) as file:
            yield (
                f"la2018_{path.parent.name}",
                file["image"][:],
                file["label"][:],
                np.diag([0.625] * 3 + [1]),
            )


def halved(voxels: np.ndarray) -> np.ndarray:
    """Return the mean of each 2 x 2 x 2 block; an odd last plane is left out."""
    a, b, c = (side // 2 for side in voxels.shape)
    blocks = voxels[: 2 * a, : 2 * b, : 2 * c].astype(np.float64)
    return blocks.reshape(a, 2, b, 2, c, 2).mean((1, 3, 5))


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[1] not in PICTURES | VOLUMES | SUBSETS:
        sys.exit(__doc__)
    print(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])))
