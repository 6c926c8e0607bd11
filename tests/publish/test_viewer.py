"""The viewer: its volumes are the masks and scans at the right place in mm, it says what is
missing, and it asks nothing of the network."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from mvl.core import files, run_folder
from mvl.datasets.task import TaskError
from mvl.evidence.arms import LABEL, colour
from mvl.evidence.chapter import open_chapter
from mvl.evidence.example_cases import RANKS, STUDY_WORST
from mvl.evidence.example_masks import Drawn
from mvl.publish import book, viewer
from mvl.publish.browser import Browser, find_browser

VENDOR = book.SOURCES / "_vendor" / "niivue"
SHA256 = "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"
"Of dist/niivue.umd.js in the npm package @niivue/niivue 0.69.0."
AFFINE = np.array([[-1.0, 0, 0, 30], [0, 1.2, 0, -20], [0, 0, 2, 5], [0, 0, 0, 1]])
ARMS = ("vit_baseline", "medvisionllama_v3")
SHAPE = (12, 14, 8)


def blob(shift: int = 0) -> np.ndarray:
    mask = np.zeros(SHAPE, dtype=bool)
    mask[3 + shift : 8 + shift, 4:10, 2:6] = True
    return mask


@pytest.fixture
def drawn() -> list[Drawn]:
    affine = tuple(map(tuple, AFFINE.tolist()))
    return [
        Drawn(
            "phantoms",
            f"case_{i}",
            rank,
            3,
            affine,
            {s: blob(k) for k, s in enumerate(ARMS)},
            {s: 0.9 - 0.1 * i - k / 100 for k, s in enumerate(ARMS)},
        )
        for i, rank in enumerate(RANKS)
    ]


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """The scan of every case."""
    scan = np.random.default_rng(0).normal(1000, 100, SHAPE).astype(np.float32)
    for module in ("mvl.publish.viewer", "mvl.evidence.example_masks"):
        monkeypatch.setattr(f"{module}.read_volume", lambda *_: (scan, blob(), AFFINE))
    return scan


@pytest.fixture
def no_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object) -> None:
        raise TaskError("data/raw: no data there; `mvl fetch`")

    for module in ("mvl.publish.viewer", "mvl.evidence.example_masks"):
        monkeypatch.setattr(f"{module}.read_volume", absent)


@pytest.fixture(autouse=True)
def quick_still(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Drawing takes seconds and is looked at by two tests."""
    if "real_still" not in request.fixturenames:
        monkeypatch.setattr(viewer, "still", lambda *_: "<svg></svg>")


@pytest.fixture
def real_still() -> None:
    """Asks for the picture as it is."""


def facts(page: str) -> dict[str, Any]:
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', page, re.S)[1])


def volume(text: str) -> nibabel.Nifti1Image:
    import gzip

    return nibabel.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(text)))


def test_the_vendored_script_is_the_published_one_with_its_licence() -> None:
    assert files.sha256_file(VENDOR / "niivue.umd.js") == SHA256
    text = (VENDOR / "LICENSE").read_text()
    assert (
        SHA256 in text
        and "0.69.0" in text
        and "BSD 2-Clause License" in text
        and "Redistributions in binary form" in text
    )


def test_the_script_lies_where_the_page_looks_and_on_no_other_page() -> None:
    settings = (book.SOURCES / "_config.yml").read_text()
    assert "html_extra_path: [_vendor]" in settings and "niivue" not in settings, (
        "in the book's folder, loaded by no page of itself"
    )
    assert '"niivue/niivue.umd.js"' in viewer.TEMPLATE.read_text()


def test_volumes_are_masks_and_scan_at_their_place(drawn: list[Drawn], scans: np.ndarray) -> None:
    found = facts(viewer.page(drawn, (), ["phantoms"]))
    assert found["blank"] == 0 and [layer["key"] for layer in found["layers"]] == [
        "scan",
        "label",
        *ARMS,
    ]
    assert [layer["colour"] for layer in found["layers"][1:]] == [LABEL, *map(colour, ARMS)]
    for one, case in zip(drawn, found["cases"]):
        assert set(case["volumes"]) == {"scan", "label", *ARMS} and (
            case["case"],
            case["rank"],
        ) == (one.case, one.rank)
        for key, expected in {"label": blob(), **one.predictions}.items():
            image = volume(case["volumes"][key])
            assert np.array_equal(np.asarray(image.dataobj), expected) and np.allclose(
                image.affine, AFFINE
            )
        shown = np.asarray(volume(case["volumes"]["scan"]).dataobj).ravel()
        inside = (shown > 0) & (shown < 255)
        assert np.corrcoef(shown[inside], scans.ravel()[inside])[0, 1] > 0.999
        assert case["dice"] == {s: f"{one.dice[s]:.3f}" for s in ARMS}
        middle = np.linalg.inv(AFFINE) @ [*case["at"], 1]
        assert np.allclose(middle[:3], [5, 6.5, 3]), (
            "opens in the middle of the label on the recorded slice"
        )


def test_without_scans_only_masks_are_shown_and_it_says_so(
    drawn: list[Drawn], no_scans: None, real_still: None
) -> None:
    page = viewer.page(drawn, (), ["Task04_Hippocampus"])
    found = facts(page)
    assert [layer["key"] for layer in found["layers"]] == list(ARMS) and found["blank"] == 1
    assert all(
        set(case["volumes"]) == set(ARMS) and not np.asarray(volume(case["blank"]).dataobj).any()
        for case in found["cases"]
    )
    assert (
        "Masks only: the scans are not at hand" in found["note"]
        and "Masks only" in re.search(r"<figcaption>(.*?)</figcaption>", page)[1]
    )
    still = page[page.index("<svg") : page.index("</svg>")]
    assert "Dice 0.80" in still and "<image" in still and "#fcfcfa" not in still


def test_the_rule_of_choice_and_phantoms_are_named(drawn: list[Drawn], scans: np.ndarray) -> None:
    page = viewer.page(drawn, (), ["phantoms"])
    assert (
        "of fold 0, seed 0, ranked by the Dice of ViT-Baseline, none chosen by hand: case_0 (best),"
        " case_1 (median),"
        " case_2 (worst)" in page
    )
    assert facts(page)["note"].startswith("Phantom data: a smoke study")
    assert "hantom" not in facts(viewer.page(drawn, (), ["Task04_Hippocampus"]))["note"]


def test_nothing_to_show_is_a_card_with_the_holes() -> None:
    page = viewer.page([], ["example segmentations need the weights of r1"], ["phantoms"])
    assert (
        facts(page)["cases"] == []
        and "not yet recorded: example segmentations need the weights of r1" in page
    )


def test_the_still_is_the_same_picture_each_time(
    drawn: list[Drawn], scans: np.ndarray, real_still: None
) -> None:
    first = viewer.still(drawn, (), ["phantoms"], "")
    assert first.startswith("<svg") and "xmlns" not in first
    assert first == viewer.still(drawn, (), ["phantoms"], "")


def test_the_same_input_gives_the_same_page_and_text_cannot_end_its_script(
    drawn: list[Drawn], scans: np.ndarray
) -> None:
    assert viewer.page(drawn, (), ["phantoms"]) == viewer.page(drawn, (), ["phantoms"])
    hostile = [replace(one, case="</script><b>&") for one in drawn]
    page = viewer.page(hostile, (), ["phantoms"])
    assert (
        facts(page)["cases"][0]["case"] == "</script><b>&"
        and page.count("</script>") == 2
        and "<b>" not in page
    )


def test_a_large_volume_is_thinned_below_the_limit_at_the_same_place(
    drawn: list[Drawn], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    scan, mask = (
        rng.normal(size=(96, 96, 64)).astype(np.float32),
        np.zeros((96, 96, 64), dtype=bool),
    )
    mask[40:60, 40:60, 20:40] = True
    monkeypatch.setattr(viewer, "read_volume", lambda *_: (scan, mask, AFFINE))
    found = viewer.case_volumes(replace(drawn[0], predictions={"vit_baseline": mask}), True)
    assert max(len(base64.b64decode(text)) for text in found["volumes"].values()) <= viewer.LARGEST
    image = volume(found["volumes"]["label"])
    assert (
        image.shape == (48, 48, 32)
        and np.allclose(image.affine[:, 3], AFFINE[:, 3])
        and np.allclose(image.affine[:3, :3], 2 * AFFINE[:3, :3])
    )


class Elements(HTMLParser):
    """Tags and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_block_asks_nothing_of_the_network_and_names_its_parts(
    drawn: list[Drawn], scans: np.ndarray, tmp_path: Path
) -> None:
    page = viewer.page(drawn, (), ["phantoms"])
    (tmp_path / "p.html").write_text(f"<html><body>{page}</body></html>")
    assert list(book.network_requests(tmp_path)) == [] and not re.search(r"https?://|@@", page)
    tags = Elements(page).found
    assert (
        next(a for t, a in tags if t == "svg")["aria-label"]
        and next(a for t, a in tags if t == "canvas")["aria-label"]
    )
    assert next(a for t, a in tags if a.get("class") == "mvl-status")["role"] == "status"
    assert next(i for i, (t, _) in enumerate(tags) if t == "svg") < next(
        i for i, (t, _) in enumerate(tags) if t == "canvas"
    ), "the still comes first"


def test_the_case_table_is_the_recorded_dice(drawn: list[Drawn]) -> None:
    text = viewer.case_table(drawn)
    assert "| case_1 | median | 0, 0 | 0.800 | 0.790 |" in text and "phantom data" in text
    assert viewer.case_table([], ["why"]) == "Not yet recorded: why."


def chromium(page: Path, folder: Path, *flags: str) -> str:
    """The page's elements after its script ran."""
    words = [
        "chromium",
        "--headless",
        "--no-sandbox",
        *flags,
        "--virtual-time-budget=20000",
        f"--user-data-dir={folder / 'profile'}",
        "--dump-dom",
    ]
    return subprocess.run(
        [*words, page.as_uri()], capture_output=True, text=True, timeout=400
    ).stdout


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium here")
def test_chromium_loads_the_volumes_and_lets_them_be_switched(
    drawn: list[Drawn], scans: np.ndarray, tmp_path: Path
) -> None:
    folder = tmp_path / "notebooks"
    folder.mkdir()
    (tmp_path / "niivue").symlink_to(VENDOR)
    block = viewer.page(drawn, (), ["phantoms"])
    (folder / "p.html").write_text(
        '<!doctype html><html data-content_root="../"><head><meta'
        f' charset="utf-8"></head><body>{block}</body></html>'
    )
    text = chromium(
        folder / "p.html",
        tmp_path,
        "--use-gl=angle",
        "--use-angle=swiftshader",
        "--enable-unsafe-swiftshader",
    )
    assert (
        'data-state="loaded"' in text
        and "loaded 4 volumes of case_1, the median case (fold 0, seed 0). Phantom data" in text
    )
    controls = [a for t, a in Elements(text).found if t == "input"]
    assert [a["type"] for a in controls] == ["radio"] * 3 + ["checkbox"] * 4 + ["range"] + [
        "radio"
    ] * 3 + ["range"] * 3
    assert (
        "medvisionllama" not in text.split('type="application/json"')[0]
        and "MedVisionLlama v3 (Dice 0.790)" in text
    )
    assert re.findall(r"<output>([^<]*)</output>", text) == ["80 %", "7 of 12", "8 of 14", "4 of 8"]


def test_the_caption_names_fold_and_seed_and_the_worst_case_that_is_not_shown(
    drawn: list[Drawn], scans: np.ndarray
) -> None:
    far = replace(drawn[2], case="case_9", rank=STUDY_WORST, fold=4, seed=1)
    words = viewer.caption([*drawn, far])
    assert "Test cases of fold 0, seed 0" in words
    assert "case_9 (worst of the study, fold 4, seed 1)" in words
    chapter = open_chapter("qualitative", "hippocampus", run_folder.records_dir())
    worst = chapter.cases[chapter.cases["system"] == "vit_baseline"].sort_values("dice").iloc[0]
    said = viewer.not_shown(chapter, drawn)
    place = f"{worst['case']} (fold {worst['fold']}, seed {worst['seed']}, Dice"
    assert f"{place} {worst['dice']:.3f}), is not shown" in said
    assert viewer.not_shown(chapter, [replace(far, case=worst["case"])]) == ""
    assert "not shown" in viewer.page(drawn, (), ["phantoms"], None, said)


@pytest.mark.skipif(find_browser() is None, reason="no Chromium or Chrome")
def test_an_address_opens_its_case_and_errors_are_told_by_words_and_numbers(
    drawn: list[Drawn], scans: np.ndarray, tmp_path: Path
) -> None:
    (tmp_path / "niivue").symlink_to(VENDOR)
    block = viewer.page(drawn, (), ["phantoms"])
    (tmp_path / "p.html").write_text(
        '<!doctype html><html lang="en" data-content_root="./"><head><meta charset="utf-8"><title>'
        f"t</title></head><body>{block}</body></html>"
    )
    loaded = (
        "new Promise((done, fail) => {{ const look = () => {{ const box ="
        " document.querySelector('.mvl-viewer'); const said = box.querySelector('.mvl-status')"
        ".textContent; box.dataset.state === 'loaded' && said.includes('{0}') ? done(said) :"
        " setTimeout(look, 50); }}; look(); setTimeout(fail, 60000, Error('not loaded')); }})"
    )
    with Browser() as browser:
        browser.show(1440, 900, False)
        browser.open((tmp_path / "p.html").as_uri() + "#case=case_2")
        assert "the worst case (fold 0, seed 0)" in browser.evaluate(loaded.format("case_2"))
        assert browser.evaluate("document.querySelectorAll('input[type=radio]')[2].checked")
        browser.evaluate("location.hash = '#case=case_0'; null")
        browser.evaluate(loaded.format("case_0"))

        legend = "document.querySelector('.mvl-errors').offsetHeight"
        assert browser.evaluate(legend) == 0
        words = browser.evaluate(
            "(() => { const ways = [...document.querySelectorAll('label')].filter(label =>"
            " label.textContent.startsWith('errors')); ways[0].querySelector('input').click();"
            " return document.querySelector('.mvl-viewer').innerText; })()"
        )
        assert browser.evaluate(legend) > 0 and "false positive: in the mask" in words
        # the second arm's blob is the label's, one voxel further: a side of 6 x 4 voxels each
        assert "24 voxels false positive, 24 false negative" in words
        assert "ViT-Baseline (Dice 0.900): 0 voxels false positive, 0 false negative" in words
        browser.page.keyboard.press("Tab")
        ring = (
            "(() => { const box = document.querySelector('label'); box.firstChild.focus();"
            " return getComputedStyle(box).outlineStyle; })()"
        )
        assert browser.evaluate(ring) == "solid"
        assert browser.faults() == []


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium here")
def test_without_webgl_the_picture_stays_and_it_says_why(
    drawn: list[Drawn], scans: np.ndarray, tmp_path: Path
) -> None:
    (tmp_path / "p.html").write_text(
        f"<!doctype html><html><body>{viewer.page(drawn, (), ['phantoms'])}</body></html>"
    )
    text = chromium(tmp_path / "p.html", tmp_path, "--disable-gpu", "--disable-3d-apis")
    assert (
        'data-state="no-webgl"' in text
        and "offers no WebGL 2" in text
        and 'class="mvl-live" hidden' in text
        and "<svg" in text
    )
