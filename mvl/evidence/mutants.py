"""Mutation testing: small faults put into the code one at a time, which the tests must notice.

`python -m mvl.evidence.mutants [LAYER ...]` runs mutmut over the layers that `pyproject.toml` lists
and writes `data/mutants.json`; `make faults MUTANTS=1` does so last. With `--sample N` it tests N
mutants a layer, drawn by a stated seed. The book shows the record.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvl.core import machine
from mvl.core.config import ROOT
from mvl.core.errors import MvlError
from mvl.core.files import now, sha256_bytes, sha256_file, write_json
from mvl.core.markdown import markdown_table
from mvl.core.seeds import draw_seed

RECORD = ROOT / "data" / "mutants.json"
REASONS = ROOT / "data" / "mutants.toml"
"Why a mutant that survives may do so, by its change."
STATE = ROOT / "data" / "runs" / "faults" / "mutants"
COPIED = ("mvl", "tests", "pyproject.toml")
"What a layer's folder has its own copy of; everything else is a link."
TARGET = 0.95
"Share of a layer's mutants that its own tests must kill; set beforehand."
NOTICED = (1, 3, -11, 24, -24, 36, 152)
"""Exit codes of mutmut for a mutant that was noticed: a test failed, Python crashed, or the tests
went on for many times their usual time."""
SURVIVED, UNTESTED = 0, (5, 33)
"""Survived: every test passed. Untested: no test of the layer calls the function. Any other code is
no verdict; 255 says that pytest itself could not run."""
ADDOPTS = (
    "addopts=--import-mode=importlib -m 'not (slow or faults or colab or slurm or kubernetes)'"
)
"""In place of the project's: a fault must be noticed by a test, not by the run-time check of
annotations, which could not be set up twice in one process either."""


class MutantsError(MvlError, RuntimeError):
    """mutmut did not come to a result, or a layer is unknown; the message names the remedy."""


@dataclass(frozen=True)
class Layer:
    """A part of the package that is mutated, and the tests that are asked."""

    name: str
    files: tuple[str, ...]
    tests: tuple[str, ...]


def layers(project: Path = ROOT / "pyproject.toml") -> dict[str, Layer]:
    """The layers of `[tool.mutants]` by name."""
    table = tomllib.loads(project.read_text())["tool"]["mutants"]
    return {name: Layer(name, tuple(v["files"]), tuple(v["tests"])) for name, v in table.items()}


def sources_sha256(root: Path = ROOT) -> str:
    """Hex sha256 of the package, its tests and the settings: a verdict holds for these alone."""
    inside = [path for name in COPIED for path in sorted((root / name).rglob("*"))]
    paths = [
        path
        for path in [*inside, root / "pyproject.toml"]
        if path.suffix in (".py", ".yaml", ".toml")
    ]
    lines = [f"{path.relative_to(root)} {sha256_file(path)}" for path in paths]
    return sha256_bytes("\n".join(lines).encode())


def settings(layer: Layer) -> str:
    """The `[tool.mutmut]` section of a layer's copy of `pyproject.toml`.

    Mutants are forked from a process that has imported torch but never ran it: the threads that
    torch starts do not outlive a fork.
    """
    words = {
        "source_paths": ["mvl"],
        "only_mutate": list(layer.files),
        "pytest_add_cli_args_test_selection": list(layer.tests),
        "pytest_add_cli_args": ["-p", "no:cacheprovider", "-o", ADDOPTS],
        "process_isolation": "forkserver",
        "use_git_change_detection": False,
    }
    return "\n[tool.mutmut]\n" + "".join(
        f"{key} = {json.dumps(value)}\n" for key, value in words.items()
    )


def prepare(layer: Layer, folder: Path, root: Path = ROOT) -> None:
    """Make a project of the layer in `folder`, unless one of the same sources is there."""
    stamp, wanted = folder / "sources.sha256", sources_sha256(root)
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    shutil.rmtree(folder, ignore_errors=True)
    inner = folder / "mutants"
    inner.mkdir(parents=True)
    for path in root.iterdir():
        if path.name not in (*COPIED, ".git", ".venv"):
            (inner / path.name).symlink_to(path.resolve())
    leave_out = shutil.ignore_patterns("__pycache__")
    for name in ("mvl", "tests"):
        shutil.copytree(root / name, folder / name, ignore=leave_out)
    (folder / "pyproject.toml").write_text((root / "pyproject.toml").read_text() + settings(layer))
    stamp.write_text(wanted)


def run(
    layer: Layer, folder: Path, jobs: int = 1, root: Path = ROOT, sample: int = 0, seed: int = 0
) -> None:
    """Test the layer's mutants that have no verdict yet, or those of a sample.

    Raises:
        MutantsError: mutmut ended with an error; holds its last lines.
    """
    prepare(layer, folder, root)
    chosen: list[str] = []
    if sample:
        codes = all_codes(layer, folder) or dict.fromkeys(all_names(layer, folder))
        chosen = [n for n in drawn(codes, layer, sample, seed) if not has_verdict(codes[n])]
        if not chosen:
            return
    done = _mutmut(folder, jobs, chosen)
    if done.returncode:
        last = (done.stdout + done.stderr).strip().splitlines()[-15:]
        raise MutantsError(
            f"mutmut on {layer.name} ended with {done.returncode}; see {folder / 'mutmut.txt'}:\n"
            + "\n".join(last)
        )


NAMES = """
import sys
from mutmut.mutation.file_mutation import mutate_file_contents
for file in sys.argv[1:]:
    module = file.removesuffix(".py").replace("/", ".")
    for name in mutate_file_contents(file, open(file).read()).mutant_names:
        print(f"{module}.{name}")
"""


def all_names(layer: Layer, folder: Path) -> list[str]:
    """mutmut's name of every mutant, before any is made; mutmut reads its settings on import."""
    words = [
        sys.executable,
        "-c",
        NAMES,
        *(str(f.relative_to(folder)) for f in files(layer, folder)),
    ]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.split()


def files(layer: Layer, folder: Path) -> list[Path]:
    """The files of a layer's project that are mutated."""
    return sorted(path for pattern in layer.files for path in folder.glob(pattern))


def _mutmut(folder: Path, jobs: int, names: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run mutmut in a layer's folder on mutants of these names, or all; keep what it prints."""
    words = [sys.executable, "-m", "mutmut", "run", "--max-children", str(jobs), *names]
    done = subprocess.run(
        words, cwd=folder, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": ""}
    )
    (folder / "mutmut.txt").write_text(done.stdout + done.stderr)
    return done


def drawn(codes: Iterable[str], layer: Layer, sample: int, seed: int) -> list[str]:
    """The names of a random sample; a larger one of the same seed holds it."""
    ordered = sorted(codes, key=lambda name: draw_seed(seed, "mutants", layer.name, name))
    return ordered[:sample]


def has_verdict(code: int | None) -> bool:
    """Whether mutmut's exit code says that a mutant was noticed, survived, or met no test."""
    return code in (*NOTICED, SURVIVED, *UNTESTED)


def all_codes(layer: Layer, folder: Path) -> dict[str, int | None]:
    """mutmut's exit code of every mutant by its name; nothing before the first run."""
    codes: dict[str, int | None] = {}
    for file in files(layer, folder):
        meta = folder / "mutants" / file.relative_to(folder).with_suffix(".py.meta")
        if meta.is_file():
            codes |= json.loads(meta.read_text())["exit_code_by_key"]
    return codes


def verdicts(layer: Layer, folder: Path, sample: int = 0, seed: int = 0) -> dict[str, int | None]:
    """mutmut's exit code of every mutant, or of every one in the sample, by its name.

    Raises:
        MutantsError: mutants without a verdict are left; says how many.
    """
    codes = all_codes(layer, folder)
    if sample:
        codes = {name: codes[name] for name in drawn(codes, layer, sample, seed)}
    open_ones = [name for name, code in codes.items() if not has_verdict(code)]
    if open_ones or not codes:
        raise MutantsError(
            f"{layer.name}: {len(open_ones)} of {len(codes)} mutants have no verdict; run it again"
        )
    return codes


def change(name: str, folder: Path) -> str:
    """The lines that a mutant takes away and puts in, without their indentation."""
    words = [sys.executable, "-m", "mutmut", "show", name]
    shown = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=True).stdout
    lines = [
        line for line in shown.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")
    ]
    return "\n".join(f"{line[0]} {line[1:].strip()}" for line in lines)


def function_of(name: str) -> str:
    """`mvl.training.objective.BCEDice.forward` of mutmut's
    `mvl.training.objective.xǁBCEDiceǁforward__mutmut_3`."""
    module, mangled = name.rsplit("__mutmut_", 1)[0].rsplit(".", 1)
    inner = mangled.removeprefix("x_").removeprefix("xǁ").replace("ǁ", ".")
    return f"{module}.{inner}"


def reasons(path: Path = REASONS) -> dict[tuple[str, str], str]:
    """Why survivors may survive, by function and change."""
    if not path.is_file():
        return {}
    entries = tomllib.loads(path.read_text()).get("survivor", [])
    return {(entry["function"], entry["change"].strip()): entry["reason"] for entry in entries}


def summary(layer: Layer, folder: Path, sample: int = 0, seed: int = 0) -> dict[str, Any]:
    """What `data/mutants.json` keeps of a layer."""
    codes, known = verdicts(layer, folder, sample, seed), reasons()
    alive = sorted(name for name, code in codes.items() if code not in NOTICED)
    rows = []
    for name in alive:
        where, what = function_of(name), change(name, folder)
        reason = known.get((where, what), "")
        tested = codes[name] == SURVIVED
        rows.append({"function": where, "change": what, "tested": tested, "reason": reason})
    return {
        "files": list(layer.files),
        "tests": list(layer.tests),
        "made": len(all_codes(layer, folder)),
        "seed": seed if sample else None,
        "mutants": len(codes),
        "killed": len(codes) - len(alive),
        "survivors": rows,
        "sources_sha256": (folder / "sources.sha256").read_text(),
        "measured": now(),
    }


def read_record(path: Path = RECORD) -> dict[str, Any]:
    """What was measured by layer; nothing where the file is absent."""
    return dict(json.loads(path.read_text())["layers"]) if path.is_file() else {}


def table(path: Path = RECORD) -> str:
    """Each layer's mutants as a Markdown table; a layer that nobody measured says so."""
    record = read_record(path)
    rows = []
    for name, layer in layers().items():
        row, files = record.get(name), ", ".join(f"`{file}`" for file in layer.files)
        if row is None:
            rows.append([name, files, "not measured", "", f"{TARGET:.0%}", ""])
            continue
        reasoned = sum(bool(survivor["reason"]) for survivor in row["survivors"])
        last = f"{reasoned} of {len(row['survivors'])}"
        share, tested = f"{row['killed'] / row['mutants']:.1%}", f"{row['mutants']:,}"
        if row["mutants"] < row["made"]:
            tested += f" of {row['made']:,}, drawn by seed {row['seed']}"
            share = share_killed(row)
        killed = f"{row['killed']:,} ({share})"
        rows.append([name, files, tested, killed, f"{TARGET:.0%}", last])
    head = "layer | files | mutants | killed by its own tests | target | survivors with a reason"
    return markdown_table(head, "llllrr", rows)


def share_killed(row: dict[str, Any]) -> str:
    """The share of a sample that was killed, with its exact 95 % interval over all mutants."""
    from scipy import stats

    test = stats.binomtest(row["killed"], row["mutants"])
    low, high = test.proportion_ci(0.95, method="exact")
    return f"{row['killed'] / row['mutants']:.1%}; 95 % interval {low:.1%} to {high:.1%}"


def survivors(path: Path = RECORD) -> str:
    """Every survivor with its change and its reason, as a Markdown table."""
    rows = []
    for name, row in read_record(path).items():
        for one in row["survivors"]:
            shown = " → ".join(
                f"`{line[2:]}`".replace("|", "\\|") for line in one["change"].splitlines()
            )
            rows.append([name, f"`{one['function']}`", shown, one["reason"] or "no reason yet"])
    head = "layer | function | change | why it may stay"
    return markdown_table(head, "llll", rows) if rows else "None is recorded."


def facts(path: Path = RECORD) -> dict[str, str]:
    """What `book/reliability.md` shows."""
    return {"mutants_table": table(path), "mutants_survivors": survivors(path)}


def main(words: Sequence[str] | None = None) -> int:
    """Run the named layers, or all, and write the record; 1 when one stays below the target."""
    known = layers()
    parser = argparse.ArgumentParser(prog="python -m mvl.evidence.mutants", description=__doc__)
    parser.add_argument(
        "layers", nargs="*", metavar="LAYER", help=f"of {', '.join(known)}; all without one"
    )
    parser.add_argument("--jobs", type=int, default=1, help="mutants tested side by side")
    parser.add_argument("--sample", type=int, default=0, help="mutants a layer; 0: all")
    parser.add_argument("--seed", type=int, default=0, help="draws the sample")
    asked = parser.parse_args(words)
    if unknown := sorted(set(asked.layers) - set(known)):
        raise MutantsError(f"unknown layer {unknown[0]!r}; known: {', '.join(known)}")
    below = []
    for name in asked.layers or known:
        draw = (asked.sample, asked.seed)
        run(known[name], STATE / name, asked.jobs, ROOT, *draw)
        row = summary(known[name], STATE / name, *draw)
        write_json(
            RECORD, {"platform": machine.platform_facts(), "layers": read_record() | {name: row}}
        )
        if row["killed"] < TARGET * row["mutants"]:
            below.append(name)
        print(f"{name}: {row['killed']} of {row['mutants']} mutants killed", flush=True)
    return 1 if below else 0


if __name__ == "__main__":
    sys.exit(main())
