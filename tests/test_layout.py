"""The tree keeps its shape: places, sizes, docstrings, one dependency list, one public address,
annotations that are checked."""

import ast
import itertools
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from mvl.core.config import ROOT

TOP = set(
    "README.md CONTRIBUTING.md SECURITY.md CHANGELOG.md CITATION.cff codemeta.json LICENSE"
    " pyproject.toml constraints.txt requirements.lock environment.yml Makefile".split()
)
TOP |= {
    "Snakefile",
    "data",
    "mvl",
    "notebooks",
    "book",
    "tests",
    "workflow",
    ".ci",
    ".github",
    ".gitignore",
}
OWN = set(
    ".git .venv .snakemake .pytest_cache .mypy_cache .ruff_cache mvl_companion.egg-info"
    " build __pycache__ .ipynb_checkpoints".split()
)
MODULES = sorted((ROOT / "mvl").rglob("*.py"))
TEXT = {
    ".py",
    ".md",
    ".yaml",
    ".yml",
    ".toml",
    ".txt",
    ".cff",
    ".ipynb",
    ".csv",
    ".json",
    ".bib",
    ".css",
    "",
}
MARKS = ["TO" + "DO", "FIX" + "ME", "XX" + "X", "NotImplemented" + "Error"]
MACHINE = re.compile(r"(?<![\w.$}])/(work|tmp|home|root)/|" + "|".join(MARKS))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ADDRESS = PROJECT["project"]["urls"]["Repository"]


def committed() -> list[Path]:
    """Files that are, or would be, in git, but for third-party scripts."""
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        names = subprocess.run(
            words, cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git clone")
    return [ROOT / name for name in names if (ROOT / name).is_file() and "_vendor" not in name]


def named(path: Path) -> str:
    """Path relative to the clone."""
    return str(path.relative_to(ROOT))


def test_the_top_level_is_fixed():
    assert {path.name for path in ROOT.iterdir()} - TOP - OWN == set()


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_a_module_is_one_idea(path):
    assert len(path.read_text().splitlines()) <= 350
    assert path.stem not in ("utils", "helpers", "common", "misc")


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_public_names_are_documented(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "module docstring"
    public = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    assert [node.name for node in public if not ast.get_docstring(node)] == []


@pytest.mark.parametrize(
    "path", [path for path in MODULES if path.name not in ("__init__.py", "__main__.py")], ids=named
)
def test_tests_mirror_the_package(path):
    """A module has a test file of its name, or the tests of its layer import it."""
    layer = ROOT / "tests" / path.parent.name
    if not (layer / f"test_{path.name}").is_file():
        used = {name for tests in layer.glob("test_*.py") for name in imported_modules(tests)}
        assert dotted(path) in used


LAYERS = "core datasets weights models training study bench evidence publish cli".split()
"The layers of the package, from the ground up."
ALL = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in MODULES
}


def dotted(path: Path) -> str:
    """Name of a module as an import writes it."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported_modules(path: Path) -> set[str]:
    """Modules of the package that a file imports, inside its functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & ALL
            outer = {node.module} if len(inner) < len(node.names) else set()
            found |= inner | outer
    return found & ALL


def test_every_import_points_downwards():
    upward = [
        f"{dotted(path)} imports {name}"
        for path in MODULES
        if path.parent.name in LAYERS
        for name in imported_modules(path)
        if name == "mvl.__main__"
        or (name.count(".") and LAYERS.index(name.split(".")[1]) > LAYERS.index(path.parent.name))
    ]
    assert upward == []
    assert {path.parent.name for path in MODULES} == {"mvl", *LAYERS}
    assert {path.name for path in MODULES if path.parent.name == "mvl"} == {
        "__init__.py",
        "__main__.py",
    }


def test_no_module_imports_itself_by_way_of_others():
    import networkx

    graph = networkx.DiGraph(
        [(dotted(path), name) for path in MODULES for name in imported_modules(path)]
    )
    assert [
        sorted(circle)
        for circle in networkx.strongly_connected_components(graph)
        if len(circle) > 1
    ] == []


def test_no_unfinished_mark_and_no_machine_path():
    places = [
        f"{named(path)}:{i}: {line.strip()[:80]}"
        for path in committed()
        if path.suffix in TEXT and path.parent.name != ".ci"
        for i, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if MACHINE.search(line)
    ]
    assert places == []


def test_the_public_address_stands_in_one_place():
    owner_and_name = ADDRESS.removeprefix("https://github.com/")
    texts = {
        named(path): path.read_text()
        for path in committed()
        if path.suffix in TEXT | {".svg", ".html"}
    }
    notebooks = {name for name in texts if name.endswith(".ipynb")}
    # codemeta.json cannot read another file; a test holds its address against this one
    assert {name for name, text in texts.items() if owner_and_name in text} - notebooks == {
        "pyproject.toml",
        "codemeta.json",
    }
    for name in notebooks:  # what is opened on Colab must say where it comes from: the same place
        found = set(re.findall(r"(?:github\.com|/github)/([\w.-]+/mvl)\b", texts[name]))
        assert found <= {owner_and_name}, name


def test_no_large_file_is_committed():
    assert [named(path) for path in committed() if path.stat().st_size > 2_000_000] == []


def requirement(line: str) -> str:
    """Normal name of a requirement."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!;~ @]", line.strip())[0]).lower()


PINS = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
)


def test_every_dependency_is_pinned_within_its_range():
    from packaging.requirements import Requirement

    pins = {requirement(name): version for name, version in PINS.items()}
    extras = PROJECT["project"]["optional-dependencies"]
    for line in [
        *PROJECT["project"]["dependencies"],
        *(line for name, lines in extras.items() if name != "all" for line in lines),
    ]:
        need = Requirement(line)
        assert need.specifier.contains(pins[requirement(need.name)]), line


def test_constraints_are_exact_and_carry_no_build_tag():
    lines = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
    assert PINS["torch"] == "2.13.0"


def test_python_and_what_colab_brings_have_no_upper_cap():
    assert PROJECT["project"]["requires-python"] == ">=3.11"
    assert [
        line for line in PROJECT["project"]["dependencies"] if "<" in line or "==" in line
    ] == []


def test_extra_all_is_every_other_extra():
    extras = PROJECT["project"]["optional-dependencies"]
    assert set(re.findall(r"\w+", extras["all"][0].split("[")[1])) == set(extras) - {"all"}


def test_conda_wraps_the_same_install():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = next(item["pip"] for item in environment["dependencies"] if isinstance(item, dict))
    assert pip == ["-c constraints.txt", "-e .[all]"]
    assert f"-c constraints.txt -e '.{'[all]'}'" in (ROOT / "Makefile").read_text()


def test_imports_are_declared():
    known = {
        "yaml": "pyyaml",
        "PIL": "pillow",
        "IPython": "ipykernel",
        "markdown_it": "markdown-it-py",
        "sphinx": "jupyter-book",
        "packaging": "packaging",
    }
    extras = PROJECT["project"]["optional-dependencies"]
    declared = {
        requirement(line)
        for line in [*PROJECT["project"]["dependencies"], *itertools.chain(*extras.values())]
    } | {"packaging"}
    # Colab's own package; the released code that `mvl bench` is pointed at
    elsewhere = {"google", "src"}
    nodes = [node for path in MODULES for node in ast.walk(ast.parse(path.read_text()))]
    used = {name for node in nodes for name in imported(node)} - set(sys.stdlib_module_names)
    assert {name for name in used if requirement(known.get(name, name)) not in declared} - {
        "mvl",
        *elsewhere,
    } == set()


def imported(node: ast.AST) -> list[str]:
    """Top names of what an import statement imports."""
    if isinstance(node, ast.Import):
        return [alias.name.split(".")[0] for alias in node.names]
    return (
        [node.module.split(".")[0]]
        if isinstance(node, ast.ImportFrom) and node.module and not node.level
        else []
    )


def test_make_help_lists_every_target():
    text = (ROOT / "Makefile").read_text()
    phony = set(re.search(r"^\.PHONY: (.*)$", text, re.M)[1].split())
    outside = {
        key: value
        for key, value in os.environ.items()
        if key not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")
    }
    done = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True, env=outside
    ).stdout
    assert {line.split()[0] for line in done.splitlines()[1:]} == phony
    assert phony >= {
        "help",
        "setup",
        "reproduce",
        "test",
        "check",
        "figures",
        "notebooks",
        "book",
        "serve",
        "bench",
        "doctor",
        "clean",
    }


def test_readme_fits_a_screen_and_its_links_lead_somewhere():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 100
    links = re.findall(r"\]\((?!http)([^)#]+)\)", text)
    assert links and [link for link in links if not (ROOT / link).exists()] == []


def test_the_book_names_each_study():
    text = (ROOT / "book" / "studies.md").read_text()
    for path in (ROOT / "mvl" / "configs" / "studies").glob("*.yaml"):
        assert f"| `{path.stem}` |" in text


def test_annotations_are_checked_in_this_run():
    from mvl.core.files import sha256_bytes
    from mvl.core.seeds import draw_seed

    assert draw_seed(1) >= 0
    with pytest.raises(Exception, match="Type-check error"):
        sha256_bytes("not bytes")
