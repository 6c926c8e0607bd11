"""The book asks nothing of the network, takes its address from pyproject.toml, and shows one study
only."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib

import pytest
import yaml

from mvl.core.config import ROOT
from mvl.publish import book, book_facts
from mvl.publish.notebooks import list_notebooks
from mvl.study.links import colab_url

ADDRESS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]


def config():
    return yaml.safe_load((book.SOURCES / "_config.yml").read_text())


def test_config_is_offline_and_executes_nothing():
    settings = config()["sphinx"]["config"]
    assert config()["execute"]["execute_notebooks"] == "off"
    assert settings["nb_ipywidgets_js"] == {}
    assert "sphinx_thebe" not in settings["extensions"]
    script = (
        book.SOURCES / settings["html_extra_path"][0] / settings["mathjax_path"].removeprefix("../")
    )
    assert script.stat().st_size > 2_000_000
    assert "Apache License" in (script.parent / "LICENSE").read_text()


def test_contents_list_every_notebook_and_page():
    files = [
        chapter["file"]
        for part in yaml.safe_load((book.SOURCES / "_toc.yml").read_text())["parts"]
        for chapter in part["chapters"]
    ]
    assert [
        f.removeprefix("notebooks/") for f in files if f.startswith("notebooks/")
    ] == list_notebooks()
    pages = {p.stem for p in book.SOURCES.glob("*.md")} - {"intro"}
    assert pages == {f for f in files if not f.startswith("notebooks/")}


def test_the_address_stands_in_pyproject_alone():
    assert book_facts.repository_url() == ADDRESS
    for path in [
        *book.SOURCES.glob("*.md"),
        *book.SOURCES.glob("*.yml"),
        *(ROOT / "mvl").rglob("*.py"),
    ]:
        assert ADDRESS not in path.read_text(), f"{path} repeats the repository's address"


def test_derived_addresses_in_readme_and_notebooks_are_the_repositorys():
    owner = ADDRESS.removeprefix("https://github.com/")
    texts = {
        path: path.read_text()
        for path in [ROOT / "README.md", *(ROOT / "notebooks").glob("*.ipynb")]
        if path.is_file()
    }
    for path, text in texts.items():
        for found in re.findall(
            r"https://colab\.research\.google\.com/github/([\w.-]+/[\w.-]+)", text
        ):
            assert found == owner, f"{path} opens {found} on Colab; pyproject.toml says {owner}"
    assert (
        colab_url("01_baseline")
        == f"https://colab.research.google.com/github/{owner}/blob/main/notebooks/01_baseline.ipynb"
    )


@pytest.mark.parametrize(
    "html",
    [
        '<script src="https://unpkg.com/x.js"></script>',
        '<link rel="stylesheet" href="//fonts.example/x.css">',
        '<img src="http://x.example/a.png">',
        '<link rel="preload" href="https://x.example/f.woff2">',
        '<iframe src="https://x.example"></iframe>',
    ],
)
def test_what_a_browser_would_fetch_is_found(tmp_path, html):
    (tmp_path / "page.html").write_text(f"<html><body>{html}</body></html>")
    assert len(list(book.network_requests(tmp_path))) == 1


def test_hyperlinks_and_own_files_are_not_requests(tmp_path):
    (tmp_path / "page.html").write_text(
        '<a href="https://x.example">x</a><script src="_static/a.js"></script><link rel="canonical"'
        ' href="https://x.example">'
    )
    (tmp_path / "a.css").write_text("a { background: url(data:image/png;base64,AA) }")
    assert list(book.network_requests(tmp_path)) == []
    (tmp_path / "a.css").write_text("@import url(https://fonts.example/a.css);")
    assert len(list(book.network_requests(tmp_path))) == 1


def test_the_badge_becomes_a_link_in_the_book():
    for name in list_notebooks():
        text = (ROOT / "notebooks" / f"{name}.ipynb").read_text()
        staged = book.COLAB_BADGE.sub(r"[Open in Colab](\1)", text)
        assert "colab-badge.svg" in text and "colab-badge.svg" not in staged
        assert f"[Open in Colab]({colab_url(name)})" in staged
        json.loads(staged)


def test_a_page_that_asks_for_an_unknown_fact_is_an_error(tmp_path):
    (tmp_path / "page.md").write_text("Dice {{ dice }}, study {{ study }}")
    with pytest.raises(book_facts.BookError, match=r"page\.md.*dice"):
        book.fill_pages(tmp_path, {"study": "quick"})
    book.fill_pages(tmp_path, {"study": "quick", "dice": 1})
    assert (tmp_path / "page.md").read_text() == "Dice 1, study quick"


@pytest.fixture
def quiet(monkeypatch):
    """Counting the parameters of every system takes seconds and has its own test."""
    monkeypatch.setattr("mvl.publish.systems_page.systems_table", lambda: "| system |")


def test_the_cards_name_what_runs_were_tested_with_too():
    assert {"ISIC2017_256", "PH2_256"} <= set(
        book_facts._tasks(book_facts.PUBLISHED, ROOT / "data" / "results")
    )


def test_pages_of_an_unrecorded_study_show_holes_and_no_other_study(tmp_path, monkeypatch, quiet):
    monkeypatch.setattr("mvl.core.run_folder.records_dir", lambda: tmp_path / "results")
    values = book_facts.facts(tmp_path, ("hippocampus", "busi"), tmp_path / "results")
    assert values["study"] == "hippocampus" and values["published"] and not values["smoke"]
    assert "not yet" in (values["answer"] + values["results"]) or "No run" in values["answer"]
    assert values["holes"] and (tmp_path / "landing.svg").is_file() and values["others"] == []
    assert (
        "Nothing is recorded of the study `hippocampus`" in values["check"]
        and "`busi`" in values["check"]
    )


def test_each_published_notebook_has_one_study_that_owns_it():
    owners = [name for study in book_facts.PUBLISHED for name in book_facts.owned_notebooks(study)]
    assert sorted(owners) == list_notebooks() == list(book_facts.plan(book_facts.PUBLISHED))
    assert (
        book_facts.plan(book_facts.PUBLISHED)["06_llm4seg"] == "busi"
        and book_facts.plan(book_facts.PUBLISHED)["01_baseline"] == "hippocampus"
    )
    assert list(book_facts.plan(("quick",))) == [*list_notebooks()[:4], "08_qualitative"]


def test_a_study_that_names_no_notebook_shows_those_of_its_blocks(tmp_path):
    (tmp_path / "own.yaml").write_text(
        "title: t\ntasks: [shapes]\ngrid: [{name: llm4seg, systems: [cmunext]}]\ndata: {img_size:"
        " [32, 32]}\n"
    )
    assert book_facts.owned_notebooks(str(tmp_path / "own.yaml")) == ["06_llm4seg"]
    assert book_facts.main_notebook(str(tmp_path / "own.yaml")) == "06_llm4seg"
    with open(tmp_path / "own.yaml", "a") as file:
        file.write("notebooks: [06_lm4seg]")
    with pytest.raises(book_facts.BookError, match="06_lm4seg"):
        book_facts.owned_notebooks(str(tmp_path / "own.yaml"))


def test_contents_keep_only_what_is_executed(tmp_path):
    path = tmp_path / "_toc.yml"
    path.write_text((book.SOURCES / "_toc.yml").read_text())
    book.keep_contents(path, ["06_llm4seg"])
    files = [
        chapter["file"]
        for part in yaml.safe_load(path.read_text())["parts"]
        for chapter in part["chapters"]
    ]
    assert [f for f in files if f.startswith("notebooks/")] == [
        "notebooks/06_llm4seg"
    ] and "glossary" in files
    book.keep_contents(path, [])
    assert [part["caption"] for part in yaml.safe_load(path.read_text())["parts"]] == [
        "The verdicts",
        "Getting started",
        "How-to",
        "Explanation",
        "Reference",
    ]


@pytest.mark.parametrize(
    ("chapters", "others"), [((), ()), (("02_llm_hybrid", "06_llm4seg"), ("busi",))]
)
def test_the_landing_page_links_to_what_is_in_the_book(tmp_path, chapters, others):
    names = (
        "repository",
        "study",
        "title",
        "tasks",
        "answer",
        "results",
        "colab",
        "claim",
        "arms",
        "caution",
        "margin",
        "rounding",
    )
    fields: dict[str, object] = dict.fromkeys(names, "x")
    fields["second"] = {
        "in_brief": "an answer",
        "control": "a control",
        "open": "all",
    }
    fields["claims"] = {
        "judged": bool(others),
        "headline": "- a verdict",
        "summary": "9 claims",
        "alt": "figure",
        "intervals": "i",
    }
    other = [
        dict.fromkeys(("title", "claim", "answer", "results"), "y")
        | {
            "study": s,
            "notebook": "06_llm4seg",
        }
        for s in others
    ]
    (tmp_path / "intro.md").write_text((book.SOURCES / "intro.md").read_text())
    book.fill_pages(
        tmp_path,
        fields
        | {
            "smoke": False,
            "chapters": list(chapters),
            "chapter": "02_llm_hybrid",
            "others": other,
        },
    )
    text = (tmp_path / "intro.md").read_text()
    assert "an answer" in text
    assert set(re.findall(r"notebooks/(\w+)", text)) == set(chapters) and (
        "`busi`" in text
    ) == bool(others)
    assert ("(claims.svg)" in text) == ("- a verdict" in text) == bool(others)


def test_the_machine_of_the_bench_is_named_only_where_there_is_a_bench(tmp_path, monkeypatch):
    monkeypatch.setattr("mvl.bench.systems.BENCH", tmp_path / "bench.json")
    assert book_facts.bench_machine() == ""
    row = {
        "machine": {
            "processor": "p",
            "device": "cpu",
            "model": "a cpu",
            "cpu_capability": "AVX2",
            "fp32_gflops": 50.0,
        }
    }
    (tmp_path / "bench.json").write_text(json.dumps({"bars": [row], "systems": {}}))
    words = "a cpu, AVX2, a matrix product of 50 GFLOP/s in fp32"
    assert (
        book_facts.bench_machine()
        == f", on {words} (each row of data/bench.json names its machine)"
    )


def test_what_draws_from_records_imports_no_networks():
    drawn = "from mvl.evidence import differences, example_masks, learning_rates, second_study"
    pages = "from mvl.publish import book, chapter_page, charts_cases, colab, figures_cases, viewer"
    asked = "import sys; print({'torch', 'monai', 'transformers'} & set(sys.modules))"
    command = [sys.executable, "-c", f"{drawn}; {pages}; {asked}"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
