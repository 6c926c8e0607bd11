"""No GPU for the tests, which compare bits of a CPU; and a tiny data set of your own, made when a
test asks for it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest

# Before CUDA starts, in this process and in those that tests start. What a GPU must show is shown
# by `make gpu`.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["HIP_VISIBLE_DEVICES"] = ""

# Loaded after the lines above, because it imports torch.
pytest_plugins = ["tests.tiny_checkpoints"]

AFFINE = np.array([[-1.5, 0, 0, 20], [0, -1, 0, 10], [0, 0, 1.2, -5], [0, 0, 0, 1.0]])


def write_nifti(
    path: Path, voxels: np.ndarray, affine: np.ndarray = AFFINE, **fields: object
) -> Path:
    """A NIfTI file with sform and qform, and other header fields as given."""
    image = nibabel.Nifti1Image(voxels, affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    for key, value in fields.items():
        image.header[key] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path


@pytest.fixture
def nifti():
    """The writer of NIfTI files."""
    return write_nifti


@pytest.fixture(scope="session")
def own_data():
    """A maker of nnU-Net folders: bright boxes in noise, labels 1 and 2."""

    def make(
        folder: Path,
        cases: int = 12,
        channels: int = 1,
        shape: tuple[int, ...] = (20, 18, 16),
        **description: object,
    ) -> Path:
        for index in range(cases):
            rng = np.random.default_rng(index)
            image, label = rng.normal(100, 10, shape).astype(np.float32), np.zeros(shape, np.uint8)
            corner = rng.integers(3, 8, 3)
            for value, shift in ((1, 0), (2, 4)):
                x, y, z = corner + np.array([0, 0, shift])
                label[x : x + 6, y : y + 6, z : z + 4] = value
            for channel in range(channels):
                write_nifti(
                    folder / "imagesTr" / f"case_{index:02d}_{channel:04d}.nii.gz",
                    image + 50 * label + 30 * channel * (label > 1),
                )
            write_nifti(folder / "labelsTr" / f"case_{index:02d}.nii.gz", label)
        described = {
            "channel_names": {str(k): f"channel {k}" for k in range(channels)},
            "labels": {"background": 0, "core": 1, "rim": 2},
            "numTraining": cases,
            "file_ending": ".nii.gz",
        }
        (folder / "dataset.json").write_text(json.dumps({**described, **description}))
        return folder

    return make


@pytest.fixture(scope="session")
def dicom_series():
    """A writer of a DICOM series, one file per slice: stored voxels (columns, rows, slices) at an
    RAS affine, with a patient's name."""
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    def write(folder: Path, stored: np.ndarray, affine: np.ndarray, **fields: object) -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        to_lps = np.diag([-1.0, -1, 1, 1]) @ affine
        steps = np.linalg.norm(to_lps[:3, :3], axis=0)
        uids = {
            "SeriesInstanceUID": generate_uid(),
            "FrameOfReferenceUID": generate_uid(),
            "StudyInstanceUID": generate_uid(),
        }
        paths = []
        for z in range(stored.shape[2]):
            meta = FileMetaDataset()
            meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = (
                ExplicitVRLittleEndian,
                pydicom.uid.CTImageStorage,
            )
            meta.MediaStorageSOPInstanceUID = generate_uid()
            data = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
            data.SOPInstanceUID, data.SOPClassUID = (
                meta.MediaStorageSOPInstanceUID,
                meta.MediaStorageSOPClassUID,
            )
            data.PatientName, data.PatientID, data.Modality = "Secret^Name", "4711", "CT"
            data.Rows, data.Columns, data.SamplesPerPixel, data.PhotometricInterpretation = (
                stored.shape[1],
                stored.shape[0],
                1,
                "MONOCHROME2",
            )
            data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = (
                16,
                16,
                15,
                1,
            )
            data.ImageOrientationPatient = [
                float(v) for v in (*(to_lps[:3, 0] / steps[0]), *(to_lps[:3, 1] / steps[1]))
            ]
            data.PixelSpacing = [float(steps[1]), float(steps[0])]
            data.ImagePositionPatient = [float(v) for v in (to_lps @ [0, 0, z, 1])[:3]]
            data.RescaleSlope, data.RescaleIntercept = 1, -1024
            data.PixelData = stored[:, :, z].T.astype("<i2").tobytes()
            for name, value in (uids | fields).items():
                setattr(data, name, value)
            paths.append(folder / f"im{(z * 7) % 101:03d}")
            data.save_as(paths[-1], enforce_file_format=True)
        return paths

    return write


@pytest.fixture(scope="session")
def evidence():
    """A maker of a study's tables for the claims' rules: per arm, one mean Dice per fold; every
    arm's cases vary alike around it."""
    import pandas as pd

    from mvl.evidence.claims_evidence import Evidence

    task, keys = "Task04_Hippocampus", ["task", "system", "fraction", "fold", "seed"]

    def make(
        arms: dict,
        folds: int = 5,
        lost: tuple = (),
        fractions: tuple = (1.0,),
        trainable: dict | None = None,
        **more: object,
    ) -> Evidence:
        plan = [
            (task, system, f, fold, 0)
            for system in arms
            for f in fractions
            for fold in range(folds)
        ]
        done = [row for row in plan if row not in [(task, *hole) for hole in lost]]
        cases = [
            (*row, f"case_{row[3]}_{i}", arms[row[1]][row[3] % len(arms[row[1]])] + 0.01 * i)
            for row in done
            for i in range(4)
        ]
        state, place = (
            lambda row: "done" if row in done else "missing",
            "hippocampus/runs/{}/{}/fraction-{}_fold-{}_seed-{}",
        )
        runs = [
            (*row, state(row), (trainable or {}).get(row[1], 100), place.format(*row))
            for row in plan
        ]
        scores = pd.DataFrame(cases, columns=[*keys, "case", "dice"])
        scores = scores.assign(
            jaccard=scores["dice"] - 0.1,
            nsd=scores["dice"],
            sensitivity=scores["dice"],
            specificity=scores["dice"],
            hd95_mm=3 - scores["dice"],
        )
        history = [
            (*row, epoch, arms[row[1]][row[3] % len(arms[row[1]])] * min(1, epoch / 10))
            for row in done
            for epoch in range(12)
        ]
        return Evidence(
            "hippocampus",
            pd.DataFrame(plan, columns=keys),
            pd.DataFrame(runs, columns=[*keys, "state", "trainable", "run"]),
            scores,
            pd.DataFrame(history, columns=[*keys, "epoch", "val_dice"]),
            limit="a small model stands in",
            **more,
        )

    return make
