"""Public addresses: of the repository, of a notebook on Colab, of a run's page."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from urllib.parse import quote

from mvl.core import run_folder
from mvl.core.config import ROOT


def repository_url(root: Path = ROOT) -> str:
    """The repository's public address: `[project.urls] Repository` in pyproject.toml, the one place
    where it stands."""
    return str(
        tomllib.loads((root / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
    )


def colab_url(name: str) -> str:
    """Address that opens a notebook of the main branch on Colab."""
    return f"{repository_url().replace('https://github.com', 'https://colab.research.google.com/github')}/blob/main/notebooks/{name}.ipynb"


def run_address(results_dir: Path, place: str) -> str:
    """Address of a run's folder or file, or of an arm's
    (`<study>/runs/<task>/<system>#fraction-<f>`): on the repository where it is published.

    Else relative to the notebooks. The book turns either into its own page or copy
    (`mvl.publish.run_links.book_links`).
    """
    if not run_folder.is_records(results_dir):
        return quote(f"{os.path.relpath(results_dir, ROOT / 'notebooks')}/{place}", safe="/#")
    kind = "blob" if place.endswith((".yaml", ".json", ".csv")) else "tree"
    return f"{repository_url()}/{kind}/main/data/results/{quote(place, safe='/#')}"
