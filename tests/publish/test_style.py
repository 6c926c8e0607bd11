"""One colour and one marker for each arm, told apart within every chapter; what is generated says
so."""

from __future__ import annotations

import itertools
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from mvl.core.config import system_names
from mvl.evidence.arms import caveat, colour, generated, ordered, title
from mvl.evidence.topics import TOPICS
from mvl.publish import style


def words(figure: Figure) -> str:
    return " ".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))


def test_colours_tell_the_arms_apart_and_never_change() -> None:
    named = [colour(s) for s in system_names()]
    assert len(set(named)) == len(named)
    assert colour("vit_baseline") == "#0072B2"
    ask = "from mvl.evidence.arms import colour; print(colour('a_new_arm'))"
    again = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    assert again.stdout.strip() == colour("a_new_arm") and colour("a_new_arm") not in named


@pytest.mark.parametrize("topic", TOPICS)
def test_arms_of_one_chapter_differ_visibly_from_each_other_and_from_the_card(topic: str) -> None:
    spec = TOPICS[topic]
    arms = {*spec.extra, *spec.only, *itertools.chain(*spec.contrasts)}
    for a, b in itertools.combinations([*map(colour, sorted(arms)), style.CARD], 2):
        assert np.linalg.norm(255 * (np.array(to_rgb(a)) - np.array(to_rgb(b)))) > 38, (
            f"{a} and {b} in {topic}"
        )


def test_every_system_is_called_by_its_title() -> None:
    assert title("vit_baseline") != "vit_baseline" and title("no_such_system") == "no_such_system"
    assert ordered(["zzz", "medvisionllama_v3", "vit_baseline", "zzz"]) == [
        "vit_baseline",
        "medvisionllama_v3",
        "zzz",
    ]


def test_generated_data_are_named_and_scans_are_not() -> None:
    assert [generated([task]) for task in ("phantoms", "shapes", "BUSI", "Task04_Hippocampus")] == [
        "phantom",
        "shape",
        "",
        "",
    ]
    assert "shape data: a smoke study" in words(style.hole("x", ["shapes"]))
    assert "study" not in words(style.hole("x", ["BUSI"]))


def test_the_committed_scans_say_that_they_are_no_evidence() -> None:
    said = "40 scans, small network: shows that the pipeline works; not evidence"
    for task in ("Task04_Hippocampus_40", "Task04_Hippocampus_40_slices"):
        assert caveat([task]) == said and said in words(style.hole("x", [task]))
    assert [caveat([task]) for task in ("Task04_Hippocampus", "Dataset001_Own")] == ["", ""]
    assert title("medvisionllama_v3_tuned") == f"{title('medvisionllama_v3')}, tuned"


def test_a_caption_is_shown_under_its_figure_and_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[dict[str, str], dict[str, object]]] = []
    monkeypatch.setattr("IPython.display.display", lambda data, **how: shown.append((data, how)))
    style.show(style.hole("x"), "Nothing is there.")
    (drawing, _), (caption, how) = shown
    assert "<dc:description>Nothing is there.</dc:description>" in drawing["image/svg+xml"]
    assert "Nothing is there." in caption["text/markdown"] and how["metadata"] == style.CAPTION
