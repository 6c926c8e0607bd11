"""Notebooks by papermill, with the checks that papermill lacks."""

from __future__ import annotations

import ast
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mvl.core.errors import MvlError

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "notebooks"
NAME = re.compile(r"[a-z_]\w*", re.ASCII)
CASTS = {"str": str, "int": int, "float": float, "bool": bool}
CELL_TIMEOUT_S = 24 * 3600
"Seconds after which a cell is given up; one cell may train a whole study."
LAST_WORDS = "mvl: this notebook ran to its end"


class NotebookError(MvlError, RuntimeError):
    """A notebook is unknown, was given a wrong parameter, or did not run to its end; the message
    names it and the remedy."""


def list_notebooks(folder: Path = FOLDER) -> list[str]:
    """Names of the notebooks, in the book's order."""
    return sorted(path.stem for path in folder.glob("[0-9]*.ipynb"))


def notebook_path(name: str, folder: Path = FOLDER) -> Path:
    """The notebook's file.

    Raises:
        NotebookError: no notebook of that name.
    """
    from mvl.core.config import did_you_mean

    known = list_notebooks(folder)
    stem = name.removesuffix(".ipynb")
    if stem not in known:
        raise NotebookError(
            f"no notebook {name!r}{did_you_mean(stem, known)}; known: {', '.join(known)}"
        )
    return folder / f"{stem}.ipynb"


def declared_parameters(notebook: dict[str, Any], where: str) -> dict[str, tuple[str, Any]]:
    """Name -> (type word, default) from the one cell tagged `parameters`, whose lines are `name:
    type = literal`.

    Raises:
        NotebookError: no such cell, more than one, or a line of another form.
    """
    cells = [cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", ())]
    if len(cells) != 1:
        raise NotebookError(f"{where}: {len(cells)} cells are tagged `parameters`; tag one")
    declared = {}
    for line in ast.parse("".join(cells[0]["source"])).body:
        match line:
            case ast.AnnAssign(
                target=ast.Name(id=name), annotation=word, value=ast.expr() as value
            ) if ast.unparse(word) in CASTS:
                declared[name] = (ast.unparse(word), ast.literal_eval(value))
            case _:
                raise NotebookError(
                    f"{where}: write each parameter as `name: type = value` ({', '.join(CASTS)}),"
                    f" not `{ast.unparse(line)}`"
                )
    return declared


def check_parameters(
    given: dict[str, Any], declared: dict[str, tuple[str, Any]], where: str
) -> dict[str, Any]:
    """The given values, each as its declared type; words from the command line become numbers.

    Raises:
        NotebookError: a name that is not declared (papermill would only warn), or a value of
            another type.
    """
    from mvl.core.config import did_you_mean

    for name in given:
        if not NAME.fullmatch(name) or name not in declared:
            raise NotebookError(
                f"{where}: no parameter {name!r}{did_you_mean(name, list(declared))}; it takes:"
                f" {', '.join(declared)}"
            )
    return {
        name: cast(value, declared[name][0], f"{where}: {name}") for name, value in given.items()
    }


def cast(value: Any, kind: str, where: str) -> Any:
    """`value` as `kind` (str, int, float, bool); never rounds, never guesses."""
    if kind == "bool" and str(value).lower() in ("true", "false"):
        return str(value).lower() == "true"
    exact = type(value) is CASTS[kind] or (kind == "float" and type(value) is int)
    try:
        if kind != "bool" and (exact or (isinstance(value, str) and kind != "str")):
            return CASTS[kind](value)
    except ValueError:
        pass
    raise NotebookError(f"{where}: expected {kind}, got {value!r}")


@contextmanager
def this_interpreter() -> Iterator[None]:
    """Make `python3` mean the running interpreter: a user's own kernelspec of that name may start
    another one."""
    with tempfile.TemporaryDirectory(prefix="mvl-kernel-") as folder:
        spec = {
            "argv": [
                sys.executable,
                "-m",
                "ipykernel_launcher",
                "-f",
                "{connection_file}",
                "--IPKernelApp.log_level=40",
            ],
            "display_name": "Python 3",
            "language": "python",
            "env": {
                "PYTHONPATH": os.pathsep.join(
                    filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
                )
            },
        }
        path = Path(folder) / "kernels" / "python3" / "kernel.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(spec))
        before = os.environ.get("JUPYTER_PATH")
        os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, [folder, before]))
        try:
            yield
        finally:
            (
                os.environ.pop("JUPYTER_PATH")
                if before is None
                else os.environ.update(JUPYTER_PATH=before)
            )


def run_notebook(
    name: str,
    parameters: dict[str, Any] | None = None,
    output: Path | None = None,
    folder: Path = FOLDER,
) -> Path:
    """Execute a notebook in the clone's top folder; returns the executed copy (default
    `book/_build/notebooks/<name>.ipynb`).

    The copy appears whole or not at all.

    Raises:
        NotebookError: unknown notebook or parameter, an error in a cell, or a kernel that died or
            left early.
    """
    source = notebook_path(name, folder)
    notebook = json.loads(source.read_text())
    check_sources(notebook, source.name)
    values = check_parameters(
        parameters or {}, declared_parameters(notebook, source.name), source.name
    )
    target = Path(output) if output else ROOT / "book" / "_build" / "notebooks" / source.name
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mvl-notebook-") as scratch, this_interpreter():
        begun, ended = Path(scratch) / "in.ipynb", Path(scratch) / "out.ipynb"
        begun.write_text(json.dumps(with_last_words(notebook)))
        execute(begun, ended, values, source.name)
        finished = json.loads(ended.read_text())
    check_executed(finished, source.name)
    write_notebook(target, tidied(finished))
    return target


def check_sources(notebook: dict[str, Any], where: str) -> None:
    """Nothing when every code cell is plain Python that hides no failure.

    Raises:
        NotebookError: a `!` or `%` line, whose exit code nobody sees, or an `except` that swallows
            every exception.
    """
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for place, cell in enumerate(cells, start=1):
        try:
            nodes = list(ast.walk(ast.parse("".join(cell["source"]))))
        except SyntaxError as error:
            raise NotebookError(
                f"{where}: code cell {place}, line {error.lineno} is not plain Python; in place of"
                " a `!` or `%` line, whose failure nobody sees, call subprocess.run(...,"
                " check=True)"
            ) from error
        for node in nodes:
            if isinstance(node, ast.ExceptHandler) and (
                node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")
            ):
                raise NotebookError(
                    f"{where}: code cell {place} catches every exception, failures too; name the"
                    " one that is expected"
                )


def with_last_words(notebook: dict[str, Any]) -> dict[str, Any]:
    """The notebook and one more cell that only a living kernel can answer."""
    last: dict[str, Any] = {
        "id": "mvl-last-words",
        "cell_type": "code",
        "metadata": {},
        "source": f"print({LAST_WORDS!r})",
        "outputs": [],
        "execution_count": None,
    }
    return {**notebook, "cells": [*notebook["cells"], last]}


def execute(begun: Path, ended: Path, values: dict[str, Any], where: str) -> None:
    """Run `begun` through papermill into `ended`; whatever goes wrong becomes a NotebookError."""
    import papermill
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    try:
        papermill.execute_notebook(
            str(begun),
            str(ended),
            values,
            kernel_name="python3",
            language="python",
            start_timeout=300,
            progress_bar=False,
            cwd=str(ROOT),
            execution_timeout=CELL_TIMEOUT_S,
        )
    except (
        papermill.exceptions.PapermillException,
        CellExecutionError,
        DeadKernelError,
        RuntimeError,
        TimeoutError,
    ) as error:
        raise NotebookError(f"{where}: {error}") from error


def check_executed(notebook: dict[str, Any], where: str) -> None:
    """Every code cell ran, none ended in an error, and the kernel still answered after the last
    one.

    papermill calls a notebook completed whose kernel died or called `sys.exit(0)`; this does not.
    """
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for place, cell in enumerate(cells, start=1):
        errors = [out for out in cell["outputs"] if out["output_type"] == "error"]
        if errors:
            raise NotebookError(
                f"{where}: code cell {place} ended in {errors[0]['ename']}: {errors[0]['evalue']}"
            )
        if cell["execution_count"] is None and "".join(cell["source"]).strip():
            raise NotebookError(
                f"{where}: code cell {place} of {len(cells)} never ran: the kernel died or left"
                " before it"
            )
    if not any(LAST_WORDS in "".join(out.get("text", "")) for out in cells[-1]["outputs"]):
        raise NotebookError(f"{where}: the kernel left in the last cell")


def tidied(notebook: dict[str, Any]) -> dict[str, Any]:
    """The executed notebook without the last-words cell, without papermill's times and temporary
    paths, and without this machine's folders."""
    cells = notebook["cells"][:-1]
    for cell in cells:
        unplaced(cell)
        for key in ("papermill", "execution"):
            cell["metadata"].pop(key, None)
    metadata = {key: value for key, value in notebook["metadata"].items() if key != "papermill"}
    return {**notebook, "cells": cells, "metadata": metadata}


def unplaced(cell: dict[str, Any]) -> None:
    """Take this machine's folders, name and tokens out of a cell's printed text and injected
    parameters."""
    from mvl.core.privacy import redact

    def clean(text: Any) -> Any:
        return [redact(line) for line in text] if isinstance(text, list) else redact(text)

    if "injected-parameters" in cell["metadata"].get("tags", ()):
        cell["source"] = clean(cell["source"])
    for out in cell.get("outputs", ()):
        for holder, key in (
            (out, "text"),
            (out, "evalue"),
            (out, "traceback"),
            (out.get("data", {}), "text/plain"),
        ):
            if key in holder:
                holder[key] = clean(holder[key])


def write_notebook(path: Path, notebook: dict[str, Any]) -> None:
    """Write a notebook so that it is whole or absent."""
    from mvl.core.files import atomic_write

    atomic_write(path, json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
