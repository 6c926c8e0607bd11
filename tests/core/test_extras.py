"""Which extra brings a package that is not installed."""

import re
import tomllib

from mvl.core.config import ROOT
from mvl.core.extras import EXTRAS, lacking


def test_the_extras_are_those_of_pyproject():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(EXTRAS) <= set(declared["optional-dependencies"])


def test_a_missing_package_is_named_with_the_install_that_brings_it():
    assert "-e '.[workflow]'" in lacking("snakemake.api")
    assert re.search(r"package torch is not installed; .* -e '\.'", lacking("torch"))
