"""Segment new scans with a trained run: the preprocessing of training, the network, and the way
back to each scan's own grid."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from monai.inferers.utils import sliding_window_inference
from monai.transforms.utils import allow_missing_keys_mode
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform
from torch import Tensor

from mvl.core import device_faults, run_folder
from mvl.core.command_lines import command_of
from mvl.core.config import Config
from mvl.core.errors import MvlError
from mvl.core.files import FULL, RunError, atomic_write
from mvl.core.means import MetricError
from mvl.core.stopping import stoppable
from mvl.datasets import sandbox
from mvl.datasets.cases_2d import flat
from mvl.datasets.new_scans import Failure, NewScan, find_scans, series_as_nifti, skipped_images
from mvl.datasets.nifti import FileFault, read_scan
from mvl.datasets.pictures import check_pixels, read_image
from mvl.datasets.preprocessing import NativeProbabilities, preprocessing, to_scan_grid
from mvl.datasets.registry import task_of_run
from mvl.datasets.slices import load_volume
from mvl.training.mask_files import ANEW, STAYS, asked_files, encoded, is_there
from mvl.training.metrics import class_masks
from mvl.training.objective import predict_probabilities
from mvl.training.overlays import drawn_mask
from mvl.training.precision import check_precision
from mvl.training.trained import Predictor as Network
from mvl.training.trained import load_run

Volume = Float[Tensor, "C *spatial"]
Probabilities = Float[Tensor, "K *spatial"]


class PredictError(MvlError, RuntimeError):
    """A run or device that cannot segment; the message names it and the remedy."""


@dataclass(frozen=True)
class Options:
    """How scans are segmented."""

    device: str = ""
    "cpu or cuda; empty: cuda where there is one."
    overlap: float = 0.5
    "Share of a window that the next one covers again, in [0, 1)."
    probabilities: bool = False
    "Write the classes' probabilities too."
    overwrite: bool = False
    "Replace masks that are already there."
    series: str | None = None
    "SeriesInstanceUID to take from DICOM folders."
    overlays: bool = False
    "Draw each mask's outline on its scan too."


class Predictor:
    """A finished run, ready to segment."""

    def __init__(self, run_dir: Path, options: Options) -> None:
        """Build the run's network on the device with its best weights; the training data need not
        be there.

        Raises:
            PredictError: the run is not done, or there is no such device.
            RunError: its weights are missing or changed.
        """
        self.config, status = run_folder.read_config(run_dir), run_folder.read_status(run_dir)
        if status["state"] != "done":
            raise PredictError(
                f"{run_dir} is not a finished run (state {status['state']}); finish it with"
                f" `{command_of(run_dir)}`"
            )
        torch.set_num_threads(self.config.train.num_threads)
        self.options, self.task = options, task_of_run(self.config, status)
        self.device = choose_device(options.device)
        self.network = Network(
            load_run(run_dir), available_precision(self.config, self.device), self.device
        )
        self.transform = preprocessing(self.config.data, crop=False)

    @property
    def values(self) -> list[int]:
        """Label value of each foreground class."""
        return [1] if self.config.data.labels == "foreground" else sorted(self.task.labels)

    def name_of(self, value: int) -> str:
        """What `mvl evaluate` calls the class with this label value."""
        return "foreground" if self.config.data.labels == "foreground" else self.task.labels[value]

    def probabilities(self, files: tuple[Path, ...]) -> NativeProbabilities:
        """Class probabilities of a scan on its own grid.

        Raises:
            FileFault: it cannot be decoded.
        """
        path = files[0]
        if self.task.layout == "slices":
            return self.by_slice(path)
        if self.task.dims == 2:
            try:
                pixels = read_image(path, len(self.task.channels))
                check_pixels(pixels)
                return self.of_source(flat(pixels), path)
            except FileFault as fault:
                raise FileFault(f"{path}: {fault}; put the file right and try again") from fault
        return self.of_source([str(path) for path in files] if len(files) > 1 else str(path), path)

    def of_source(self, source: Any, path: Path) -> NativeProbabilities:
        """Class probabilities on the grid of what the preprocessing begins with: file names, or
        pixels with their spacing."""
        try:
            with allow_missing_keys_mode(self.transform):
                image = self.transform({"image": source})["image"]
        except Exception as error:
            raise FileFault(
                f"{path}: cannot be decoded ({type(error.__cause__ or error).__name__}); put the"
                " file right and try again"
            ) from error
        with torch.inference_mode():
            found = self.on_grid(image.as_tensor().float().contiguous())
        return to_scan_grid(self.transform, found, image.applied_operations, image.affine)

    def by_slice(self, path: Path) -> NativeProbabilities:
        """Class probabilities of a volume, axial slice by slice as slices.py cuts it, turned back
        to the file's own axes."""
        volume, spacing = load_volume(path)
        volume = np.asarray(volume if volume.ndim == 4 else volume[..., None], dtype=np.float32)
        planes = [
            self.of_source(flat(np.moveaxis(volume[:, :, z], -1, 0), spacing), path)
            for z in range(volume.shape[2])
        ]
        turn = ornt_transform(axcodes2ornt("RAS"), io_orientation(read_scan(path).affine))
        return torch.as_tensor(
            np.stack(
                [
                    np.ascontiguousarray(apply_orientation(part, turn))
                    for part in torch.stack(planes, dim=-1).numpy()
                ]
            )
        )

    def on_grid(self, image: Volume) -> Probabilities:
        """Class probabilities of an image: in one go where it has the size that the network was
        trained at, else window by window, averaged with Gaussian weights."""
        size, predict = self.config.data.img_size, lambda x: predict_probabilities(self.network, x)
        if tuple(image.shape[1:]) == tuple(size):
            return predict(image[None])[0].cpu().float()
        found = sliding_window_inference(
            image[None],
            size,
            1,
            predict,
            overlap=self.options.overlap,
            mode="gaussian",
            sw_device=self.device,
            device=torch.device("cpu"),
        )
        return found[0].float()

    def mask(self, probabilities: NativeProbabilities) -> UInt8[np.ndarray, "*grid"]:
        """Label values by the rule that `mvl evaluate` scores by."""
        out = np.zeros(probabilities.shape[1:], np.uint8)
        for value, found in zip(self.values, class_masks(probabilities.numpy())):
            out[found] = value
        return out


def choose_device(name: str) -> torch.device:
    """The device called `name`, or a GPU where there is one.

    Raises:
        PredictError: cuda is asked for and not there.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise PredictError("no CUDA device here; leave --device out, or use --device cpu")
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def available_precision(config: Config, device: torch.device) -> Config:
    """The run's config where `device` has its precision, else the same in fp32, and a word about it
    on stderr."""
    try:
        check_precision(config.train.precision, device)
    except RunError as error:
        print(
            f"{error}. Predicting in fp32: masks may differ a little from the run's own",
            file=sys.stderr,
        )
        return replace(config, train=replace(config.train, precision="fp32"))
    return config


def predict_run(
    run_dir: Path,
    inputs: Sequence[Path],
    output: Path,
    options: Options,
    report: Callable[[str], Any] = lambda line: print(line, file=sys.stderr, flush=True),
) -> dict[str, Any]:
    """Segment every scan of `inputs` into `output`: {run, outputs, kept, skipped, failures}; a
    broken scan is a failure and the rest go on.

    A mask is there whole or not at all, and one that is there already is kept unless
    `options.overwrite`.

    Raises:
        PredictError: the run cannot segment at all.
        OSError: the disk is full.
    """
    predictor = Predictor(run_dir, options)
    scans, failures = find_scans(inputs, predictor.task)
    skipped = skipped_images(inputs, predictor.task)
    for path in skipped:
        report(f"{path}: skipped, not a scan that this run reads; convert it if it is one")
    sources = {path.resolve() for scan in scans for path in scan.files}
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PredictError(
            f"{output}: cannot be made ({error.strerror}); choose another folder with --output"
        ) from error
    outputs, kept = [], []
    with stoppable():
        for number, scan in enumerate(scans, 1):
            asked = asked_files(scan, output, options.probabilities, options.overlays)
            told = f"[{number}/{len(scans)}] {asked['output']}"
            try:
                if is_there(asked, sources, options.overwrite):
                    kept.append({"input": str(scan.files[0]), "output": str(asked["output"])})
                    report(f"{told}: {STAYS}; {ANEW}")
                else:
                    outputs.append(segment(predictor, scan, asked))
                    report(told)
            except (FileFault, MetricError, OSError, MemoryError, RuntimeError) as error:
                path = scan.files[0]
                failures.append(Failure(str(path), fault_of(error, path, predictor.device)))
    return {
        "run": str(run_dir),
        "outputs": outputs,
        "kept": kept,
        "skipped": [str(path) for path in skipped],
        "failures": [vars(failure) for failure in failures],
    }


def fault_of(error: Exception, path: Path, device: torch.device) -> str:
    """What is said of a scan that an error kept from being segmented.

    Raises:
        Exception: the error itself where it is not of this scan alone, as a full disk is not.
    """
    if device_faults.is_out_of_memory(error):
        remedy = (
            " on the GPU; use --device cpu"
            if device.type == "cuda"
            else "; use a machine with more"
        )
        return f"{path}: not enough memory{remedy}"
    full = isinstance(error, OSError) and error.errno in FULL
    if full or not isinstance(error, FileFault | MetricError | OSError):
        raise error
    return str(error)


def segment(predictor: Predictor, scan: NewScan, asked: dict[str, Path]) -> dict[str, Any]:
    """Write what is asked for of one scan, its mask last: what came of it.

    Raises:
        FileFault: the scan cannot be used.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = as_nifti(scan, predictor, Path(folder))
        try:
            if scan.kind != "picture":
                sandbox.check_scan(files, predictor.task)
            probabilities = predictor.probabilities(files)
        except FileFault as fault:
            # A series was written into a file of our own, of which its owner knows nothing.
            told = str(fault).replace(str(files[0]), str(scan.files[0]))
            raise FileFault(told) from fault
        mask = predictor.mask(probabilities)
        if "probabilities" in asked:
            values = np.moveaxis(probabilities.numpy(), 0, -1).astype(np.float32)
            atomic_write(asked["probabilities"], encoded(values, scan, files[0]))
        if "overlay" in asked:
            channels = len(predictor.task.channels)
            atomic_write(asked["overlay"], drawn_mask(mask, scan.kind, files[0], channels))
        atomic_write(asked["output"], encoded(mask, scan, files[0]))
    counts = {predictor.name_of(value): int((mask == value).sum()) for value in predictor.values}
    written = {name: str(path) for name, path in asked.items()}
    return {
        "input": str(scan.files[0]),
        "voxels": counts,
        "probabilities": None,
        "overlay": None,
        **written,
    }


def as_nifti(scan: NewScan, predictor: Predictor, folder: Path) -> tuple[Path, ...]:
    """The scan's NIfTI files; a DICOM series is written into `folder` as one."""
    if scan.kind != "dicom":
        return scan.files
    if len(predictor.task.channels) > 1:
        raise FileFault(
            f"{scan.files[0]}: a DICOM series is one channel, the run takes"
            f" {', '.join(predictor.task.channels)}; convert each to NIfTI as"
            f" {scan.name}_0000.nii.gz, ..."
        )
    return (series_as_nifti(scan.files[0], predictor.options.series, folder / "series.nii"),)
