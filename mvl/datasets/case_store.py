"""The cases of a task as a network sees them, decoded once, and the way back to each scan's own
grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from mvl.core.config import Config, DataConfig
from mvl.core.files import sha256_file
from mvl.datasets import cases_2d, decoded_cache
from mvl.datasets.augment import Mask, Volume
from mvl.datasets.nifti import FileFault, read_scan
from mvl.datasets.preflight import files_of, refuse_closed, sound_voxels
from mvl.datasets.preprocessing import (
    NativeProbabilities,
    Probabilities,
    preprocessing,
    to_scan_grid,
)
from mvl.datasets.splits import run_split
from mvl.datasets.task import Case, TaskError
from mvl.datasets.task_data import TaskData, open_task

Damage = Callable[[str, Mask], Mask]
"Label noise: case id and label on the network's grid to the label that training sees."


@dataclass(frozen=True)
class NativeCase:
    """A label on the scan's own grid, as stored: axes are the file's, `spacing_mm` and `affine` in
    that order."""

    label: UInt8[np.ndarray, "*grid"]
    affine: Float[np.ndarray, "4 4"]
    spacing_mm: tuple[float, ...]


class CaseStore:
    """Cases of one task on the network's grid, decoded once and kept in memory up to
    `data.cache_gb` (and on disk, see decoded_cache.py)."""

    opened = False
    """True gives test cases to training: for the audit of the released code alone
    (released_faults.py)."""

    def __init__(
        self,
        task_data: TaskData,
        case_ids: tuple[str, ...],
        data: DataConfig,
        damage: Damage | None = None,
    ) -> None:
        """Find the cases' files; nothing is decoded yet. `damage` is label noise: it changes what
        `get` gives, never what `native` gives.

        Raises:
            TaskError: the task's data are absent, a case is unknown or given twice, or img_size has
                other dimensions than the task.
        """
        task = task_data.task
        if len(data.img_size) != task.dims:
            raise TaskError(
                f"{task.name}: its cases are {task.dims}-D, data.img_size {data.img_size} is not;"
                " correct it in the study"
            )
        known = {case.case_id: case for case in task_data.cases}
        for case_id in case_ids:
            if case_id not in known or case_ids.count(case_id) > 1:
                fault = "given twice" if case_id in known else "not on disk"
                raise TaskError(
                    f"{task.name}: case {case_id} is {fault}; see data/splits/{task.name}.json"
                )
        self.task_data, self.task, self.case_ids, self.data = task_data, task, tuple(case_ids), data
        self.cases = [known[case_id] for case_id in case_ids]
        self.folder, self.manifest = task_data.folder, task_data.manifest
        self.transform, self.damage = preprocessing(data), damage
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}
        self.traces: dict[int, tuple[Any, Any]] = {}
        self.kept_bytes = 0

    def __len__(self) -> int:
        """Number of cases."""
        return len(self.case_ids)

    def get(self, index: int) -> tuple[Volume, Mask]:
        """Image and label of a case on the network's grid; do not change them in place.

        Raises:
            TaskError: the file differs from its manifest or cannot be used; names it and the
                remedy.
        """
        if not self.opened:
            refuse_closed(self.cases[index])
        if index not in self.kept:
            pair = self._decode(index)
            size = sum(t.numel() * t.element_size() for t in pair)
            if self.kept_bytes + size > self.data.cache_gb * 1e9:
                return pair
            self.kept[index], self.kept_bytes = pair, self.kept_bytes + size
        return self.kept[index]

    def items(self) -> tuple[CaseStore, list[int]]:
        """The store that decodes the cases, and the index of each item's case there."""
        return self, list(range(len(self)))

    def version(self, index: int) -> tuple[int, ...]:
        """Which of the released code's versions of its case an item is: none here (see
        released_faults.py)."""
        return ()

    def native(self, index: int) -> NativeCase:
        """The case's label as drawn, on the scan's own grid."""
        if not self.opened:
            refuse_closed(self.cases[index])
        if self.task.dims == 2:
            _, flat, unit = cases_2d.read_plane(self.task, self.cases[index])
            return NativeCase(flat, np.diag([*unit, 1.0, 1.0]), unit)
        path = self.cases[index].label
        self._check_bytes(path)
        try:
            scan = read_scan(path, 1)
        except FileFault as fault:
            raise TaskError(f"{path}: {fault}; {self._remedy()}") from fault
        label = scan.voxels.astype(np.uint8)
        if not np.array_equal(label, scan.voxels):
            raise TaskError(f"{path}: holds values that are not labels; {self._remedy()}")
        return NativeCase(label, scan.affine, scan.spacing_mm)

    def to_native(self, index: int, prediction: Probabilities) -> NativeProbabilities:
        """Probabilities from the network's grid to the scan's own, trilinear, by the inverse of
        MONAI's transforms.

        What pad_crop cut away comes back as 0.
        """
        if index not in self.traces:
            self.get(index)
        if index not in self.traces:  # it came from disk, which keeps no way back
            self._transformed(index, self._digests(index))
        return to_scan_grid(self.transform, prediction, *self.traces[index])

    def warm(self) -> None:
        """Decode what fits under the cap now, so that loader processes share it instead of decoding
        it each."""
        for index in range(len(self)):
            if index not in self.kept:
                self.get(index)
                if index not in self.kept:
                    return

    def _decode(self, index: int) -> tuple[Tensor, Tensor]:
        case, digests = self.cases[index], self._digests(index)
        image, label = decoded_cache.kept(
            self.task,
            case,
            self.data,
            tuple(digests.values()),
            lambda: self._transformed(index, digests),
        )
        return image, label if self.damage is None else self.damage(case.case_id, label)

    def _digests(self, index: int) -> dict[Path, str]:
        return {path: self._check_bytes(path) for path in files_of(self.cases[index])}

    def _transformed(self, index: int, digests: dict[Path, str]) -> tuple[Tensor, Tensor]:
        case = self.cases[index]
        # no publisher vouches for your own files: each is looked at whole before its first use
        if self.task.own and self.task.dims == 3:
            sound_voxels(self.task_data, [case], digests)
        try:
            out = self.transform(self._source(case))
        except TaskError:
            raise
        except Exception as error:
            kind = type(error.__cause__ or error).__name__
            raise TaskError(
                f"{case.image} or its label cannot be decoded ({kind}); {self._remedy()}"
            ) from error
        self.traces[index] = (out["image"].applied_operations, out["image"].affine)
        image, label = out["image"].as_tensor().float().contiguous(), out["label"].as_tensor()
        self._check_values(case, image, label)
        return image, label.to(torch.uint8).contiguous()

    def _source(self, case: Case) -> dict[str, Any]:
        if self.task.dims == 2:
            return cases_2d.tensors(self.task, case)
        return {
            "image": [str(path) for path in case.images] if case.more else str(case.image),
            "label": str(case.label),
        }

    def _check_values(self, case: Case, image: Tensor, label: Tensor) -> None:
        if len(image) != len(self.task.channels):
            raise TaskError(
                f"{case.image}: {len(image)} channels, {self.task.name} has"
                f" {', '.join(self.task.channels)}; {self._remedy()}"
            )
        if not torch.isfinite(image).all():
            raise TaskError(f"{case.image}: NaN or infinite voxels; {self._remedy()}")
        # `unique` would sort the voxels
        if not reduce(or_, (label == value for value in {0, 1, *self.task.labels})).all():
            raise TaskError(
                f"{case.label}: values {label.unique().tolist()}, expected 0 and"
                f" {sorted(self.task.labels)}; {self._remedy()}"
            )

    def _check_bytes(self, path: Path) -> str:
        wanted = self.manifest.get(path.relative_to(self.folder).as_posix())
        digest = sha256_file(path)
        if wanted and digest != wanted:
            raise TaskError(
                f"{path}: its bytes differ from the manifest's sha256; {self._remedy()}"
            )
        return digest

    def _remedy(self) -> str:
        return f"run `{self.task_data.task_command('verify')}`"


def open_test_cases(config: Config, data_dir: Path | None) -> CaseStore:
    """The test cases of the run that `config` describes.

    Raises:
        TaskError: as `CaseStore` and `run_split`.
    """
    task_data = open_task(config.task, data_dir)
    return CaseStore(task_data, run_split(config, task_data).test, config.data)


def read_case(store: CaseStore, index: int) -> tuple[Volume, Mask]:
    """Image and label of a case; whatever goes wrong is a TaskError that names the case and the
    remedy."""
    try:
        return store.get(index)
    except TaskError:
        raise
    except Exception as error:  # some cannot leave a loader process, which would wait for ever
        look = store.task_data.task_command("verify")
        told = f"{type(error).__name__}: {error}; look at its files with `{look}`"
        raise TaskError(f"{store.task.name}, case {store.case_ids[index]}: {told}") from error
