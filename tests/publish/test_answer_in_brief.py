"""The answer in brief: a sentence, the protocol's words, a row for each study that is complete."""

from typing import Any

import pandas as pd
import pytest

from mvl.core.config import ROOT
from mvl.evidence import second_study
from mvl.publish import answer_in_brief, second_study_answer
from mvl.publish.answer_in_brief import answer_table, in_brief, unequal_rates
from tests.publish.test_second_study_answer import row

RECORDS = ROOT / "data" / "results"
TABLES = second_study.recorded_differences(RECORDS)


def test_the_answer_in_brief_has_the_protocols_words_and_a_row_for_each_study(tmp_path):
    answer = in_brief(TABLES, RECORDS, "page.md")
    plain, table, legend = answer.split("\n\n")
    assert plain.startswith("**On hippocampus scans") and "([Second study](page.md).)" in plain
    pictures = answer_in_brief.answer_of_pictures(TABLES)
    assert pictures.startswith("In LLM4Seg's CNN") and f" {pictures}** (" in plain
    tuned = "Trained at rates tuned for each arm"
    words = "*Training switched the layer off in this regime*."
    assert f"{tuned}: {words} Trained as published, with a tenth of the data: *The layer" in plain
    assert plain.endswith(f"{tuned}, with a tenth of the data: {words}")
    assert table == answer_table(TABLES, RECORDS)
    assert legend.endswith(unequal_rates(TABLES, RECORDS))
    assert in_brief({}, tmp_path, "page.md") == ""


@pytest.mark.parametrize(
    ("skin", "polyps", "said"),
    [
        ((-0.02, 0.03), (-0.01, 0.02), " it is not decided whether {} changes IoU on {s} and {p}."),
        ((-0.02, 0.03), (-0.02, -0.01), ", {} lowers IoU on {p}; on {s} it is not decided."),
        (
            (-0.002, 0.003),
            (0.01, 0.02),
            ", {} raises IoU on {p} and changes IoU by less than the margin of 0.4 points on {s}.",
        ),
        ((-0.02, 0.03), None, " it is not decided whether {} changes IoU on {s}."),
    ],
)
def test_the_answer_says_what_a_layer_does_in_a_cnn(
    skin: tuple[float, float], polyps: tuple[float, float] | None, said: str
) -> None:
    tables = {
        question: pd.DataFrame(
            [
                row(*(interval or skin))
                | {"system": pair[0], "reference": pair[1], "complete": interval is not None}
                for pair in question.contrasts
            ]
        )
        for question in second_study.QUESTIONS
        if (interval := {"isic": skin, "kvasir": polyps}.get(question.study, ())) != ()
    }
    layer = "a frozen layer of the same language model"
    found = said.format(layer, s="skin lesions (ISIC 2017)", p="polyps (Kvasir-SEG)")
    assert answer_in_brief.answer_of_pictures(tables) == f"In LLM4Seg's CNN{found}"
    assert answer_in_brief.answer_of_pictures({}) == ""


def test_another_organ_is_in_the_table_as_soon_as_its_hybrid_and_vit_are_complete(monkeypatch):
    organ = next(
        question
        for question in second_study.QUESTIONS
        if second_study_answer.subject_of(question) == second_study_answer.OTHER_ORGANS
    )
    rows = [
        row(-0.02, 0.03)
        | dict(system=pair[0], reference=pair[1], complete=pair[1] == "vit_baseline", metric="dice")
        for pair in organ.contrasts
    ]

    def written(rows: list[dict[str, Any]], peer: float = float("nan")) -> str:
        scores = {"unet": peer, "vit_baseline": 0.64}
        found = {organ: pd.DataFrame(rows)}
        use = pd.DataFrame({"system": "medvisionllama_v3", "zero": [-1.5, 0.1, -0.1]})
        monkeypatch.setattr(second_study, "outcome", lambda *_: "not decided")
        monkeypatch.setattr(second_study, "use_beside", lambda *_: use)
        monkeypatch.setattr(answer_in_brief, "mean_score", lambda _s, _f, arm, *_: scores[arm])
        monkeypatch.setattr(answer_in_brief, "seen", lambda *_: "1.50 points")
        return "\n".join(answer_table(found, ROOT).splitlines()[2:])

    said = written(rows)
    assert (
        "| **+0.50** [-2.00,\N{NO-BREAK SPACE}+3.00] not decided | incomplete | -0.50 (1 of 3) | "
        in said
    )
    assert said.endswith(" | 0.64 |")
    assert written(rows, 0.91).endswith(" | 0.64 (a U-Net 0.91) |")
    whole = [one | {"complete": True} for one in rows]
    assert written(whole).count("| **+0.50** [-2.00,") == 2
    assert written([one | {"complete": False} for one in rows]) == ""


def test_rates_are_said_where_the_layer_seems_to_matter_and_the_arms_had_other_ones(monkeypatch):
    said = unequal_rates(TABLES, RECORDS)
    assert said.startswith("Left atrium, tuned: the hybrid does not use its layer, and it was")
    assert "a rate of 0.008 where its shuffled control had 0.016" in said
    assert "by -0.48 to +0.14 points" in said and said.endswith("not read as one of pretraining.")
    assert said.count("at equal rates") == 1, "elsewhere the two are equivalent"
    monkeypatch.setattr(answer_in_brief, "apart_at_equal_rates", lambda *_: (0.1, 0.2, 0.5, 1.5))
    assert unequal_rates(TABLES, RECORDS).endswith("may be the rate's.")
    monkeypatch.setattr(answer_in_brief, "apart_at_equal_rates", lambda *_: None)
    assert unequal_rates(TABLES, RECORDS) == ""
