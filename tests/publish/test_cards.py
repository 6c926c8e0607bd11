"""What the cards and the page on citing say is what the registry, the splits, the sources and
CITATION.cff say."""

from __future__ import annotations

import json
import re

import yaml

import mvl
from mvl.core.config import ROOT
from mvl.datasets.registry import load_tasks
from mvl.publish import cards
from mvl.study.links import repository_url

CFF = ROOT / "CITATION.cff"


def test_citation_is_valid():
    import jsonschema

    schema = json.loads((ROOT / "tests" / "_vendor" / "cff" / "schema-1.2.0.json").read_text())
    jsonschema.Draft7Validator(schema).validate(yaml.load(CFF.read_text(), yaml.BaseLoader))
    titles = [reference["title"] for reference in cards.read_citation()["references"]]
    assert any("MedVisionLlama" in title for title in titles) and any(
        "Segmentation Booster" in title for title in titles
    )


def test_the_companion_is_cited_as_in_its_file():
    cff = cards.read_citation()
    assert cff["title"] in cards.citation_text() and str(cff["version"]) in cards.citation_text()
    assert cff["title"] in cards.citation_bibtex() and repository_url() in cards.citation_bibtex()


def test_every_description_for_machines_names_the_same_software():
    meta = json.loads((ROOT / "codemeta.json").read_text())
    cff = cards.read_citation()
    assert meta["name"] == cff["title"] and meta["codeRepository"] == repository_url()
    assert meta["version"] == str(cff["version"]) == mvl.__version__
    papers = {paper["identifier"] for paper in meta["referencePublication"]}
    cited = [id["value"] for ref in cff["references"] for id in ref.get("identifiers", ())]
    assert papers <= set(cited)


def test_every_data_set_and_weight_has_its_licence():
    tasks = load_tasks()
    table = cards.data_table(["Task04_Hippocampus", "BUSI", "of_your_own"])
    for name in ("Task04_Hippocampus", "BUSI"):
        [line] = [line for line in table.splitlines() if f"`{name}`" in line]
        assert tasks[name].licence in line and str(tasks[name].num_cases) in line
    rest = cards.other_data(["Task04_Hippocampus", "BUSI"])
    assert (
        all(f"`{name}`" in rest for name in tasks if name not in ("Task04_Hippocampus", "BUSI"))
        and "CC-BY-SA 4.0" in rest
    )
    weights = cards.weights_table()
    assert (
        "| `smollm2-135m` | Apache-2.0 |" in weights
        and "| `minilm-l6` | Apache-2.0 |" in weights
        and "Llama 3.1 Community License" in weights
    )
    assert all(line.split("|")[2].strip() for line in weights.splitlines())
    assert "10.1038/s41467-022-30695-9" in cards.data_citations(
        ["Task04_Hippocampus"]
    ) and "None" in cards.data_citations(["phantoms"])


def test_the_data_card_gives_the_licence_of_each_reduced_copy_and_counts_what_the_splits_say():
    text = (ROOT / "book" / "data_card.md").read_text()
    for name, task in load_tasks().items():
        if name.endswith(("_half", "_256")):
            [start] = re.findall(rf"\*\*`{name}`\*\* \(([^;)]+)", text)
            assert start == task.licence
            assert name != "LeftAtrium2018_half" or "cropped by its label" in text
    groups = {
        name: json.loads((ROOT / "data" / "splits" / f"{name}.json").read_text())["groups"]
        for name in ("ISIC2017_256", "Kvasir_SEG_256")
    }
    assert len(groups["ISIC2017_256"]) == 12 and "Twelve groups" in text
    assert [len(group) for group in groups["Kvasir_SEG_256"]] == [2] * 5 and "Five pairs" in text


def test_every_script_of_others_has_its_licence():
    folders = {path.name for path in (ROOT / "book" / "_vendor").iterdir() if path.is_dir()}
    assert folders <= set(cards.VENDORED)
    assert all((ROOT / "book" / "_vendor" / folder / "LICENSE").is_file() for folder in folders)
    assert "MPL-2.0" in cards.scripts_table() and "Apache-2.0" in cards.scripts_table()


def test_duplicates_are_counted_from_the_split():
    pictures, whole, groups = map(int, re.findall(r"\d+", cards.duplicates()))
    assert whole == load_tasks()["BUSI"].num_cases and 2 * groups <= pictures < whole


def test_pages_ask_for_no_other_fact():
    known = set(cards.facts(["phantoms"])) | {
        "results",
        "others",
        "other",
        "smoke",
        "tasks",
        "runs_page",
        "rounding",
        "figure_splits",
        "study",
        "repository",
    }
    for name in ("model_card", "data_card", "cite"):
        asked = set(re.findall(r"{{ (\w+)", (ROOT / "book" / f"{name}.md").read_text()))
        assert asked <= known, name
    text = (ROOT / "book" / "model_card.md").read_text()
    assert "not a medical device" in text and "clinical" in text
