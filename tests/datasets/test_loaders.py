"""What the network sees, the way back to the scan's grid, and draws that depend on nothing but
(seed, epoch, case)."""

from __future__ import annotations

import dataclasses
import pickle

import nibabel
import numpy as np
import pytest
import torch

from mvl.core.config import Config, DataConfig, TrainConfig
from mvl.datasets.case_store import CaseStore
from mvl.datasets.loaders import epoch_order, steps_per_epoch, training_loader
from mvl.datasets.new_scans import nifti_like
from mvl.datasets.registry import find_task
from mvl.datasets.task import TaskError
from mvl.datasets.task_data import TaskData

SMALL = DataConfig(img_size=(24, 32, 24))
PAD_CROP = dataclasses.replace(SMALL, img_size=(48, 48, 48), resample="pad_crop")


def store_of(toy, data=SMALL, n=12):
    task, root = toy
    return CaseStore(
        TaskData(task, root), tuple(case.case_id for case in TaskData(task, root).cases)[:n], data
    )


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.mark.parametrize("data", [SMALL, PAD_CROP])
@pytest.mark.parametrize(("labels", "values"), [("foreground", [0, 1]), ("all", [0, 1, 2])])
def test_case_on_the_networks_grid(toy, data, labels, values):
    store = store_of(toy, dataclasses.replace(data, labels=labels))
    image, label = store.get(0)
    assert (
        type(image) is torch.Tensor
        and image.dtype == torch.float32
        and image.shape == (1, *data.img_size)
    )
    assert (
        type(label) is torch.Tensor
        and label.dtype == torch.uint8
        and label.shape == (1, *data.img_size)
    )
    assert label.unique().tolist() == values
    assert abs(image.mean()) < 0.3 and 0.7 < image.std() < 1.2
    assert image[label > 0].mean() > 0.8, (
        "the structure is bright: image and label lie on one another"
    )


@pytest.mark.parametrize(("data", "least"), [(SMALL, 0.88), (PAD_CROP, 0.94)])
def test_way_back_lies_on_the_label_as_drawn(toy, data, least):
    store = store_of(toy, data)
    stored = set()
    for index in range(len(store)):
        native, (_, label) = store.native(index), store.get(index)
        back = store.to_native(index, label.float())
        assert type(back) is torch.Tensor and back.shape == (1, *native.label.shape)
        assert dice(back[0].numpy() > 0.5, native.label > 0) > least
        image = nibabel.load(store.cases[index].label)
        assert np.array_equal(native.label, np.asarray(image.dataobj)) and np.array_equal(
            native.affine, image.affine
        )
        assert native.spacing_mm == pytest.approx(image.header.get_zooms())
        stored.add((nibabel.aff2axcodes(image.affine), max(native.spacing_mm) > 1))
    assert len({codes for codes, _ in stored}) == 2 and {thick for _, thick in stored} == {
        False,
        True,
    }, "both kinds seen"


def test_way_back_keeps_every_class_apart(toy):
    store = store_of(toy, dataclasses.replace(SMALL, img_size=(48, 48, 48), labels="all"))
    _, label = store.get(0)
    one_hot = torch.stack([(label[0] == k).float() for k in range(3)])
    back, native = store.to_native(0, one_hot).numpy(), store.native(0)
    assert all(dice(back.argmax(0) == k, native.label == k) > 0.9 for k in range(3))
    assert np.allclose(back.sum(0), 1, atol=1e-4)


def test_a_mask_that_is_written_has_the_scans_geometry_and_nothing_else(toy, tmp_path):
    store, path = store_of(toy), tmp_path / "p.nii.gz"
    path.write_bytes(nifti_like(store.native(0).label, store.cases[0].image))
    saved, source = nibabel.load(path), nibabel.load(store.cases[0].label)
    assert np.array_equal(saved.affine, source.affine) and np.array_equal(
        saved.dataobj, source.dataobj
    )
    assert (
        bytes(saved.header["descrip"]).strip(b"\0")
        == bytes(saved.header["aux_file"]).strip(b"\0")
        == b""
    )


def test_cases_are_decoded_once_under_the_cap_and_again_beyond_it(toy, monkeypatch):
    for cache_gb, expected in ((4.0, 3), (0.0, 9), (2.5 * 24 * 32 * 24 * 5 / 1e9, 2 + 3)):
        store, count = store_of(toy, dataclasses.replace(SMALL, cache_gb=cache_gb), 3), []
        decode = store._decode
        monkeypatch.setattr(
            store, "_decode", lambda index, f=decode, n=count: n.append(index) or f(index)
        )
        first = [store.get(i)[0].clone() for _ in range(3) for i in range(3)]
        assert len(count) == expected and torch.equal(first[0], first[6])


def test_store_refuses_unknown_repeated_altered_and_non_finite_cases(toy):
    task, root = toy
    for ids, message in (
        (("nobody",), "nobody is not on disk"),
        (("phantom_000", "phantom_000"), "phantom_000 is given twice"),
    ):
        with pytest.raises(TaskError, match=message):
            CaseStore(TaskData(task, root), ids, SMALL)
    path = root / "Toy" / "imagesTr" / "phantom_000.nii.gz"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(TaskError, match=r"phantom_000.nii.gz: its bytes differ.*mvl verify Toy"):
        store_of(toy).get(0)
    (root / "Toy" / "manifest.json").unlink()
    voxels = np.full((20, 20, 20), 3, np.float32)
    voxels[0, 0, 0] = np.nan
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), path)
    with pytest.raises(TaskError, match=r"phantom_000.nii.gz: NaN or infinite"):
        store_of(toy).get(0)
    path.write_bytes(b"no scan")
    with pytest.raises(
        TaskError, match=r"phantom_000.nii.gz or its label cannot be decoded.*mvl verify"
    ):
        store_of(toy).get(0)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (7, r"values \[0.0, 7.0\], expected 0 and"),
        (-1, r"values \[-1.0, 0.0\]"),
        (0.5, "expected 0 and"),
    ],
)
def test_a_label_that_the_task_does_not_know_is_refused(toy, value, told):
    store = store_of(toy, dataclasses.replace(SMALL, labels="all"))
    label = torch.zeros(1, 24, 32, 24)
    store._check_values(
        store.cases[0], torch.zeros(1, 24, 32, 24), torch.stack([label, label + 1, label + 2])
    )
    label[0, 3, 4, 5] = value
    with pytest.raises(TaskError, match=told):
        store._check_values(store.cases[0], torch.zeros(1, 24, 32, 24), label)


def config_of(**data):
    return Config(data=dataclasses.replace(SMALL, **data), train=TrainConfig(batch_size=5))


def batches_of(toy, config, epoch=0, *where):
    return list(training_loader(store_of(toy), config, epoch, *where))


def same(a, b):
    return len(a) == len(b) and all(
        x["cases"] == y["cases"]
        and torch.equal(x["image"], y["image"])
        and torch.equal(x["label"], y["label"])
        for x, y in zip(a, b)
    )


def test_batches_hold_every_case_once_with_the_short_last_one(toy):
    batches = batches_of(toy, config_of())
    assert [len(b["cases"]) for b in batches] == [5, 5, 2] and steps_per_epoch(12, 5) == 3
    assert sorted(case for b in batches for case in b["cases"]) == sorted(store_of(toy).case_ids)
    assert all(
        b["image"].dtype == torch.float32
        and b["label"].dtype == torch.uint8
        and type(b["image"]) is torch.Tensor
        for b in batches
    )
    assert batches[2]["image"].shape == (2, 1, 24, 32, 24) == batches[2]["label"].shape


def test_draws_depend_on_seed_epoch_and_case_alone(toy):
    config = config_of()
    first = batches_of(toy, config)
    torch.manual_seed(99)
    np.random.seed(99)
    state = torch.get_rng_state()
    assert same(first, batches_of(toy, config)) and torch.equal(state, torch.get_rng_state()), (
        "global generators neither matter nor move"
    )
    assert same(first[1:], batches_of(toy, config, 0, 1)), "starting in mid-epoch changes nothing"
    assert not same(first, batches_of(toy, config, 1)) and not same(
        first, batches_of(toy, dataclasses.replace(config, seed=1))
    )


def test_workers_change_only_speed(toy):
    assert same(batches_of(toy, config_of()), batches_of(toy, config_of(num_workers=2)))


def test_ranks_share_each_batch(toy):
    whole, parts = (
        batches_of(toy, config_of()),
        [batches_of(toy, config_of(), 0, 0, rank, 3) for rank in range(3)],
    )
    assert [len(p) for p in parts] == [3, 3, 3] and [len(p[2]["cases"]) for p in parts] == [1, 1, 0]
    assert parts[2][2]["image"].shape == (0, 1, 24, 32, 24)
    for step, batch in enumerate(whole):
        for place, case in enumerate(batch["cases"]):
            part = parts[place % 3][step]
            assert part["cases"][place // 3] == case and torch.equal(
                part["image"][place // 3], batch["image"][place]
            )


def test_order_differs_by_epoch_and_is_a_permutation():
    ids = tuple(f"c{i}" for i in range(50))
    assert sorted(epoch_order(ids, 0, 0)) == list(range(50)) and epoch_order(
        ids, 0, 0
    ) != epoch_order(ids, 0, 1)


def test_augmentation_off_leaves_cases_as_they_are(toy):
    store = store_of(toy)
    for batch in training_loader(store, config_of(augment=False), 0):
        for case, image, label in zip(batch["cases"], batch["image"], batch["label"]):
            kept = store.get(store.case_ids.index(case))
            assert torch.equal(image, kept[0]) and torch.equal(label, kept[1])


def test_augmentation_leaves_the_cache_alone(toy):
    store = store_of(toy)
    before = [tuple(t.clone() for t in store.get(i)) for i in range(len(store))]
    list(training_loader(store, config_of(), 0))
    assert all(
        torch.equal(a, b) for i in range(len(store)) for a, b in zip(before[i], store.get(i))
    )


def test_store_can_be_sent_to_another_process(toy):
    store = store_of(toy)
    assert torch.equal(pickle.loads(pickle.dumps(store)).get(1)[0], store.get(1)[0])


@pytest.mark.parametrize("data", [SMALL, dataclasses.replace(PAD_CROP, img_size=(48, 64, 48))])
def test_real_scans_go_there_and_back(data):
    task = find_task("hippocampus_40")
    cases = tuple(case.case_id for case in TaskData(task).cases)[:4]
    store = CaseStore(TaskData(task), cases, data)
    for index in range(len(cases)):
        native = store.native(index)
        back = store.to_native(index, store.get(index)[1].float())
        assert (
            back.shape[1:] == native.label.shape
            and dice(back[0].numpy() > 0.5, native.label > 0) > 0.9
        )
        assert native.spacing_mm == (1.0, 1.0, 1.0)
