"""From files to the network's grid and back: MONAI transforms over the one reader of scans."""

from __future__ import annotations

import copy
import logging
import warnings
from pathlib import Path
from typing import Any

import nibabel
from jaxtyping import Float
from monai.data import MetaTensor, NibabelReader
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    Lambdad,
    LoadImaged,
    NormalizeIntensityd,
    Orientationd,
    Resized,
    ResizeWithPadOrCropd,
    Spacingd,
    SpatialPadd,
)
from monai.transforms.utils import allow_missing_keys_mode
from monai.utils import ensure_tuple
from torch import Tensor

from mvl.core.config import DataConfig
from mvl.datasets.nifti import read_scan

Probabilities = Float[Tensor, "K *spatial"]
NativeProbabilities = Float[Tensor, "K *native"]
KEYS = ("image", "label")
# wherever pydicom is installed, MONAI speaks of a decoder that is not used here
warnings.filterwarnings("ignore", "NvImgCodecPydicomReader")
logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)


def preprocessing(data: DataConfig, crop: bool = True) -> Compose:
    """File names to (image, label) on the network's grid: orientation, z-score per case and
    channel, foreground, then resize or pad/crop.

    Pictures and slices come decoded (see cases_2d.py) and take the same steps after the
    orientation. Without `crop`, pad_crop only pads, so that nothing of a scan is lost (see
    predict.py).

    Source: MedVisionLlama, released `datasets.py`. Differs: labels are resized by nearest neighbour
    (released: linear), min-max after the z-score is left out, every channel is kept (released: the
    first).
    """
    size, flat = data.img_size, len(data.img_size) == 2
    steps = (
        []
        if flat
        else [
            LoadImaged(KEYS, reader=ScanReader, image_only=True),
            EnsureChannelFirstd(KEYS),
            Orientationd(KEYS, axcodes="RAS", labels=None),
        ]
    )
    steps.append(NormalizeIntensityd("image", channel_wise=True))
    if data.labels == "foreground":
        steps.append(Lambdad("label", foreground, track_meta=True, inv_func=_same))
    if data.resample == "resize":
        return Compose(
            [
                *steps,
                Resized(
                    KEYS,
                    spatial_size=size,
                    mode=("bilinear" if flat else "trilinear", "nearest-exact"),
                ),
            ]
        )
    spacing = Spacingd(
        KEYS,
        pixdim=data.spacing_mm[: len(size)],
        mode=("bilinear", "nearest"),
        padding_mode="border",
    )
    return Compose(
        [*steps, spacing, (ResizeWithPadOrCropd if crop else SpatialPadd)(KEYS, spatial_size=size)]
    )


class ScanReader(NibabelReader):
    """MONAI's reader of NIfTI files, which gets every file through `nifti.read_scan`."""

    def read(self, data: Any, **kwargs: Any) -> Any:
        """Return one nibabel image for each file name, with its affine in mm."""
        self.filenames = ensure_tuple(data)
        images = []
        for name in self.filenames:
            scan = read_scan(Path(name))
            kind = scan.voxels.dtype.newbyteorder("=")
            images.append(nibabel.Nifti1Image(scan.voxels, scan.affine, dtype=kind))
        return images if len(images) > 1 else images[0]


def foreground(label: Tensor) -> Tensor:
    """1 where any structure is."""
    return (label > 0).to(label.dtype)


def _same(label: Tensor) -> Tensor:
    return label


def to_scan_grid(
    transform: Compose, prediction: Probabilities, operations: Any, affine: Any
) -> NativeProbabilities:
    """Probabilities from the network's grid to the scan's own, by the inverse of the `operations`
    that brought an image there."""
    meta = MetaTensor(
        prediction.detach().cpu(), affine=affine, applied_operations=copy.deepcopy(operations)
    )
    with allow_missing_keys_mode(transform):
        return transform.inverse({"image": meta})["image"].as_tensor()
