"""The package's optional parts: which extra of `pyproject.toml` brings which package."""

from __future__ import annotations

EXTRAS = {
    "notebooks": ("papermill", "ipykernel", "nbclient", "nbformat"),
    "docs": ("jupyter_book", "sphinx_book_theme"),
    "workflow": ("snakemake",),
    "dicom": ("pydicom",),
    "tensorboard": ("tensorboard",),
    "export": ("onnx", "onnxruntime", "onnxscript"),
    "jats": ("mystmd_py",),
    "dev": ("pytest", "ruff", "mypy", "beartype"),
}
"Modules that each extra of pyproject.toml brings."


def lacking(module: str) -> str:
    """What to do about a package that is not installed: the extra of `pyproject.toml` that brings
    it, else the install itself."""
    extra = next(
        (f"[{name}]" for name, modules in EXTRAS.items() if module.split(".")[0] in modules), ""
    )
    return (
        f"the package {module} is not installed; run `pip install -c constraints.txt -e '.{extra}'`"
        " in the clone"
    )
