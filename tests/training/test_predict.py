"""Predictions on new scans: evaluate's own masks, whole scans window by window, nothing
half-written, and the book's page as it stands."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from mvl.cli import main
from mvl.core import run_folder
from mvl.core.config import load_config
from mvl.core.files import sha256_file, write_json
from mvl.datasets.case_store import CaseStore
from mvl.datasets.registry import find_task, task_facts
from mvl.datasets.splits import load_split
from mvl.datasets.task_data import TaskData
from mvl.models.build import build_system, own_state
from mvl.training import checkpoints, predict
from mvl.training.metrics import class_masks
from mvl.training.objective import predict_probabilities
from mvl.training.predict import (
    Options,
    PredictError,
    Predictor,
    choose_device,
    predict_run,
)
from mvl.training.run import train_run
from mvl.training.trained import load_run

NAME = "Dataset123_Boxes"
STUDY = """
title: test
tasks: [Dataset123_Boxes]
grid: [{{name: main, systems: [vit_baseline]}}]
data: {{img_size: {size}, resample: {resample}, spacing_mm: [1.5, 1.0, 1.2], labels: {labels}}}
model: {{patch_size: {patch}, encoder_layers: 1, decoder_layers: 1, hidden_size: 32, mlp_dim: 64}}
train: {{train_epochs: {epochs}, batch_size: 4, lr: 1.0e-2}}
"""


def trained(root: Path, task: str, size, resample="resize", labels="all", epochs=3) -> Path:
    """Folder of a tiny run on the data in `root`."""
    study = root / f"{resample}_{labels}_{len(size)}d.yaml"
    study.write_text(
        STUDY.format(
            size=list(size), resample=resample, labels=labels, patch=[8] * len(size), epochs=epochs
        )
    )
    return train_run(
        load_config(str(study), task, "vit_baseline", fraction=0.5),
        root / "runs",
        root,
        progress=False,
    )


@pytest.fixture(scope="module")
def root(own_data, tmp_path_factory):
    """A data root with twelve scans of 20 x 18 x 16 voxels; the runs lie in it too."""
    root = tmp_path_factory.mktemp("predict")
    own_data(root / NAME)
    return root


@pytest.fixture(scope="module")
def resized(root):
    """A run that stretches every scan."""
    return trained(root, NAME, (16, 16, 16))


@pytest.fixture(scope="module")
def windowed(root):
    """A run at a fixed spacing whose window holds a whole training scan."""
    return trained(root, NAME, (24, 24, 16), "pad_crop")


def scan_of(root: Path, case: str) -> Path:
    return root / NAME / "imagesTr" / f"{case}_0000.nii.gz"


def quiet(*args, **options):
    return predict_run(*args, Options(device="cpu", **options), lambda line: None)


def test_a_tilted_series_is_segmented_and_an_unfinished_run_names_its_folders(
    resized, dicom_series, tmp_path
):
    stored = np.random.default_rng(3).integers(500, 1500, (20, 18, 16)).astype(np.int16)
    turn = np.radians(10.8)
    affine = np.eye(4)
    affine[1:3, 1:3] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    dicom_series(tmp_path / "tilted", stored, affine)
    assert quiet(resized, [tmp_path / "tilted"], tmp_path / "out")["failures"] == []
    copy = run_folder.run_dir(tmp_path / "Anna's runs", run_folder.read_config(resized))
    shutil.copytree(resized, copy)
    (copy / "status.json").write_text('{"state": "interrupted"}')
    with pytest.raises(PredictError) as error:
        quiet(copy, [tmp_path / "tilted"], tmp_path / "out")
    words = shlex.split(str(error.value).split("`")[1])
    assert words[words.index("--results-dir") + 1] == str(tmp_path / "Anna's runs")


@pytest.mark.parametrize("which", ["resized", "windowed"])
def test_a_test_case_gets_the_mask_that_evaluate_scored(root, which, request, tmp_path):
    run = request.getfixturevalue(which)
    config, task, network = run_folder.read_config(run), find_task(NAME, root), load_run(run)
    cases = load_split(TaskData(task, root), 0, 0.5).test
    value = quiet(run, [scan_of(root, case) for case in cases], tmp_path, probabilities=True)
    store = CaseStore(TaskData(task, root), cases, config.data)
    torch.set_num_threads(config.train.num_threads)
    for index, case in enumerate(cases):
        with torch.inference_mode():
            native = store.to_native(
                index, predict_probabilities(network, store.get(index)[0][None])[0].float()
            ).numpy()
        mask = np.asarray(nibabel.load(tmp_path / f"{case}.nii.gz").dataobj)
        assert mask.dtype == np.uint8 and all(
            np.array_equal(mask == k + 1, found) for k, found in enumerate(class_masks(native))
        )
        assert np.array_equal(
            np.moveaxis(nibabel.load(tmp_path / f"{case}_probabilities.nii.gz").get_fdata(), -1, 0),
            native.astype(np.float32),
        )
        assert value["outputs"][index]["voxels"] == {
            "core": int((mask == 1).sum()),
            "rim": int((mask == 2).sum()),
        }
        assert np.array_equal(
            nibabel.load(tmp_path / f"{case}.nii.gz").affine,
            nibabel.load(scan_of(root, case)).affine,
        )
    assert (
        value["failures"] == [] and sum(sum(row["voxels"].values()) for row in value["outputs"]) > 0
    )


def test_a_larger_scan_is_segmented_to_its_edges(root, windowed, nifti, tmp_path, own_data):
    voxels = np.random.default_rng(5).normal(100, 10, (50, 30, 40)).astype(np.float32)
    path = nifti(tmp_path / "large.nii.gz", voxels)
    predictor = Predictor(windowed, Options(device="cpu"))
    whole = predictor.probabilities((path,))
    assert whole.shape == (3, 50, 30, 40) and torch.allclose(
        whole.sum(0), torch.ones(50, 30, 40), atol=1e-4
    ), "every voxel is in some window"
    centre = Predictor(windowed, Options(device="cpu", overlap=0.0)).probabilities((path,))
    assert not torch.equal(whole, centre), "overlap matters"
    assert quiet(windowed, [path], tmp_path / "out")["failures"] == []
    assert nibabel.load(tmp_path / "out" / "large.nii.gz").shape == (50, 30, 40)


def test_the_training_data_need_not_be_there(root, resized, tmp_path, monkeypatch):
    monkeypatch.setenv("MVL_DATA", str(tmp_path / "nothing"))
    copy = shutil.copytree(resized, tmp_path / "run")
    assert quiet(copy, [scan_of(root, "case_00")], tmp_path / "out")["outputs"][0]["output"] == str(
        tmp_path / "out" / "case_00.nii.gz"
    )


def test_a_series_gives_the_mask_of_its_nifti(resized, nifti, dicom_series, tmp_path):
    stored = np.random.default_rng(3).integers(500, 1500, (20, 18, 16)).astype(np.int16)
    stored[5:11, 5:11, 5:13] += 900
    affine = np.array([[-1.5, 0, 0, 20], [0, -1, 0, 10], [0, 0, 1.2, -5], [0, 0, 0, 1.0]])
    files = dicom_series(tmp_path / "series_2", stored, affine)
    path = nifti(tmp_path / "same.nii", stored.astype(np.float32) - 1024, affine)
    value = quiet(resized, [tmp_path / "series_2", path], tmp_path / "out")
    masks = [nibabel.load(row["output"]) for row in value["outputs"]]
    assert np.array_equal(masks[0].dataobj, masks[1].dataobj) and np.allclose(
        masks[0].affine, masks[1].affine, atol=1e-4
    )
    dicom_series(tmp_path / "flat", stored * 0, affine)
    (fault,) = quiet(resized, [tmp_path / "flat"], tmp_path / "new")["failures"]
    assert fault["fault"].startswith(f"{tmp_path / 'flat'}: constant image"), "no file of our own"
    files[3].unlink()
    (fault,) = quiet(resized, [tmp_path / "series_2"], tmp_path / "new")["failures"]
    assert "slices are missing" in fault["fault"] and list((tmp_path / "new").iterdir()) == []


def test_a_broken_scan_is_named_and_the_rest_go_on(root, resized, nifti, tmp_path, capsys):
    scans = tmp_path / "scans"
    shutil.copytree(root / NAME / "imagesTr", scans, ignore=lambda _, names: names[3:])
    good = sorted(path.name for path in scans.iterdir())
    (scans / "cut_0000.nii.gz").write_bytes(scan_of(root, "case_05").read_bytes()[:2000])
    (scans / "text_0000.nii.gz").write_text("no scan")
    nifti(scans / "nan_0000.nii.gz", np.full((9, 9, 9), np.nan, np.float32))
    (scans / "other.nrrd").touch()
    argv = [
        "predict",
        str(resized),
        str(scans),
        str(scans / "gone.nii"),
        "--output",
        str(tmp_path / "out"),
        "--json",
        "--device",
        "cpu",
    ]
    assert main.main(argv) == 1
    said = capsys.readouterr()
    value = json.loads(said.out)
    assert [Path(row["output"]).name for row in value["outputs"]] == [
        name.replace("_0000", "") for name in good
    ]
    faults = {Path(row["input"]).name: row["fault"] for row in value["failures"]}
    assert set(faults) == {"cut_0000.nii.gz", "text_0000.nii.gz", "nan_0000.nii.gz", "gone.nii"}
    assert (
        "truncated" in faults["cut_0000.nii.gz"]
        and "neither gzip nor NIfTI" in faults["text_0000.nii.gz"]
        and "NaN" in faults["nan_0000.nii.gz"]
    )
    assert all(str(scans / name) in fault and fault in said.err for name, fault in faults.items())
    assert value["skipped"] == [str(scans / "other.nrrd")] and "other.nrrd: skipped" in said.err
    assert len(list((tmp_path / "out").iterdir())) == len(good), (
        "nothing of the broken ones is left"
    )


def test_what_is_there_stays_unless_told_otherwise(root, resized, tmp_path):
    scan, target = scan_of(root, "case_01"), tmp_path / "case_01.nii.gz"
    target.write_text("mine")
    lines: list[str] = []
    value = predict_run(resized, [scan], tmp_path, Options(device="cpu"), lines.append)
    assert value["outputs"] == value["failures"] == [] and target.read_text() == "mine"
    assert value["kept"] == [{"input": str(scan), "output": str(target)}]
    assert lines == [
        f"[1/1] {target}: is there already and stays; use --overwrite to replace it, or choose"
        " another --output"
    ]
    assert quiet(resized, [scan], tmp_path, overwrite=True)["failures"] == [] and nibabel.load(
        target
    ).shape == (20, 18, 16)
    shutil.copy(scan, tmp_path / "own.nii.gz")
    (fault,) = quiet(resized, [tmp_path / "own.nii.gz"], tmp_path, overwrite=True)["failures"]
    assert (
        "the mask would replace its scan" in fault["fault"]
        and (tmp_path / "own.nii.gz").read_bytes() == scan.read_bytes()
    )


@pytest.mark.parametrize(
    "end", [KeyboardInterrupt(), SystemExit(143), OSError(28, "No space left on device")]
)
def test_an_interrupted_write_leaves_nothing(root, resized, tmp_path, monkeypatch, end):
    def broken(*_):
        raise end

    monkeypatch.setattr("mvl.core.files.os.replace", broken)
    with pytest.raises(type(end)):
        quiet(resized, [scan_of(root, "case_01")], tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, "not enough memory; use"),
        (OSError(28, "No space left on device"), 28, "No space left on device"),
    ],
)
def test_memory_that_runs_out_fails_one_scan_and_a_full_disk_ends_the_command(
    root, resized, tmp_path, monkeypatch, capsys, error, code, words
):
    whole = Predictor.on_grid

    def once(self, image):
        monkeypatch.setattr(Predictor, "on_grid", whole)
        raise error

    monkeypatch.setattr(Predictor, "on_grid", once)
    scans = [str(scan_of(root, case)) for case in ("case_01", "case_02")]
    argv = ["predict", str(resized), *scans, "--output", str(tmp_path), "--device", "cpu"]
    assert main.main(argv) == code
    assert words in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["case_02.nii.gz"] * (code == 1)


def test_an_outline_is_drawn_beside_each_mask_when_it_is_asked_for(root, resized, tmp_path):
    value = quiet(resized, [scan_of(root, "case_01")], tmp_path / "with", overlays=True)
    [row] = value["outputs"]
    assert sorted(path.name for path in (tmp_path / "with").iterdir()) == [
        "case_01.nii.gz",
        "case_01_overlay.png",
    ]
    with Image.open(row["overlay"]) as picture:
        assert min(picture.size) > 16 * 12
    without = quiet(resized, [scan_of(root, "case_01")], tmp_path / "without")
    assert without["outputs"][0]["overlay"] is None
    assert [path.name for path in (tmp_path / "without").iterdir()] == ["case_01.nii.gz"]


def test_the_same_command_goes_on_where_it_was_stopped(root, resized, tmp_path, monkeypatch):
    """Stopped between the second scan's overlay and its mask."""
    scans, drawn = [scan_of(root, f"case_0{k}") for k in (1, 2, 3)], predict.encoded
    asked = {"overlays": True, "probabilities": True}

    def stopping(values, scan, source):
        if scan.name == "case_02" and values.dtype == np.uint8:
            raise KeyboardInterrupt
        return drawn(values, scan, source)

    with monkeypatch.context() as patch:
        patch.setattr(predict, "encoded", stopping)
        with pytest.raises(KeyboardInterrupt):
            quiet(resized, scans, tmp_path, **asked)
    assert {path.name for path in tmp_path.glob("case_02*")} == {
        "case_02_overlay.png",
        "case_02_probabilities.nii.gz",
    }
    value = quiet(resized, scans, tmp_path, **asked)
    assert value["failures"] == [] and len(list(tmp_path.iterdir())) == 9
    assert [len(value["kept"]), len(value["outputs"])] == [1, 2]
    argv = ["predict", str(resized), *map(str, scans), "--output", str(tmp_path)]
    assert main.main([*argv, "--device", "cpu"]) == 0


def test_what_is_no_finished_run_or_no_device_is_refused(resized, tmp_path, monkeypatch):
    copy = shutil.copytree(resized, tmp_path / "run")
    write_json(copy / "status.json", {"state": "interrupted"})
    with pytest.raises(
        PredictError, match=r"not a finished run \(state interrupted\); finish it with `mvl train"
    ):
        Predictor(copy, Options())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(PredictError, match="no CUDA device here; leave --device out"):
        choose_device("cuda")
    assert choose_device("").type == "cpu"
    assert main.main(["predict", str(tmp_path), "x.nii", "--output", str(tmp_path)]) == 2, (
        "not a run at all"
    )


@pytest.mark.parametrize(
    "extra",
    [
        [],
        ["--output", "o", "--overlap", "1"],
        ["--output", "o", "--overlap=-0.1"],
        ["--output", "o", "--device", "tpu"],
    ],
)
def test_wrong_usage_ends_with_2(extra):
    with pytest.raises(SystemExit) as left:
        main.main(["predict", "run", "x.nii", *extra])
    assert left.value.code == 2


def test_several_channels_are_read_together_and_a_missing_one_is_named(own_data, tmp_path):
    own_data(tmp_path / "Two", channels=2)
    run = trained(tmp_path, "Two", (8, 8, 8), labels="foreground", epochs=1)
    images = tmp_path / "Two" / "imagesTr"
    assert len(quiet(run, [images], tmp_path / "a")["outputs"]) == 12
    (images / "case_07_0001.nii.gz").unlink()
    value = quiet(
        run, [images / "case_07_0000.nii.gz", images / "case_08_0000.nii.gz"], tmp_path / "b"
    )
    assert "case_07_0001.nii.gz: missing" in value["failures"][0]["fault"]
    assert [Path(r["output"]).name for r in value["outputs"]] == ["case_08.nii.gz"]


def test_pictures_become_masks_of_their_size(tmp_path):
    for k in range(12):
        pixels = np.random.default_rng(k).integers(0, 80, (20, 26), dtype=np.uint8)
        pixels[4 + k % 4 : 12 + k % 4, 6:16] += 150
        for kind, values in (("images", pixels), ("masks", (pixels > 120).astype(np.uint8) * 255)):
            (tmp_path / "Skin" / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(tmp_path / "Skin" / kind / f"p{k}.png")
    run = trained(tmp_path, "Skin", (16, 16), labels="foreground", epochs=8)
    value = quiet(run, [tmp_path / "Skin" / "images"], tmp_path / "out", probabilities=True)
    assert value["failures"] == [] and len(value["outputs"]) == 12
    mask, soft = (
        np.asarray(Image.open(tmp_path / "out" / "p3.png")),
        np.load(tmp_path / "out" / "p3_probabilities.npy"),
    )
    assert (
        mask.shape == (20, 26)
        and soft.shape == (20, 26, 1)
        and np.array_equal(mask == 255, soft[..., 0] > 0.5)
    )
    assert set(np.unique(mask)) <= {0, 255}


def untrained(folder: Path, task, size) -> Path:
    """A run folder with a network's first weights."""
    (folder / "s.yaml").write_text(
        STUDY.format(
            size=list(size), resample="resize", labels="all", patch=[8] * len(size), epochs=1
        )
    )
    config = load_config(str(folder / "s.yaml"), task.name, "vit_baseline")
    run_folder.write_config(folder, config)
    checkpoints.save_weights(
        folder / "weights.safetensors",
        own_state(build_system(config, len(task.channels), len(task.labels) + 1)),
    )
    digest = sha256_file(folder / "weights.safetensors")
    write_json(
        folder / "status.json",
        {"state": "done", "files": {"weights.safetensors": digest}, "task": task_facts(task)},
    )
    return folder


def test_a_run_on_slices_segments_volumes(tmp_path):
    task = find_task("phantoms_slices")
    run, cases = untrained(tmp_path, task, (16, 16)), TaskData(task).cases
    volumes = {
        nibabel.aff2axcodes(nibabel.load(case.image).affine): case.image for case in cases[:400]
    }
    assert len(volumes) == 2, "both orientations"
    value = quiet(run, list(volumes.values()), tmp_path / "out")
    for row, path in zip(value["outputs"], volumes.values()):
        ids = tuple(case.case_id for case in cases if case.image == path)[::4]
        store, network = (
            CaseStore(TaskData(task), ids, run_folder.read_config(run).data),
            load_run(run),
        )
        mask = np.asarray(nibabel.funcs.as_closest_canonical(nibabel.load(row["output"])).dataobj)
        for index, case in enumerate(store.cases):
            with torch.inference_mode():
                found = (
                    store.to_native(
                        index, predict_probabilities(network, store.get(index)[0][None])[0].float()
                    )
                    .numpy()
                    .argmax(0)
                )
            assert np.array_equal(mask[:, :, case.z], found)
        assert np.array_equal(nibabel.load(row["output"]).affine, nibabel.load(path).affine)
