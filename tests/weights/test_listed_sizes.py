"""The sizes that stand in for a model's files are those of the files themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mvl.weights import hub, listed_sizes
from mvl.weights.families import SourceError
from mvl.weights.layer_check import expected_shapes
from mvl.weights.sources import load_config

LISTED = [name for name, source in hub.load_sources().items() if source.intermediate]


@pytest.mark.parametrize("name", [*listed_sizes.SIZES, *LISTED])
def test_a_layer_can_be_counted_from_its_listed_sizes(name: str) -> None:
    config = load_config(str(listed_sizes.described(name)))
    shapes = expected_shapes(config)
    widths = {shape[-1] for shape in shapes.values()}
    assert listed_sizes.has_listed_sizes(name)
    assert {config.hidden_size, config.intermediate_size} <= widths


@pytest.mark.parametrize(("name", "file"), [("smollm2-135m", "smollm2"), ("minilm-l6", "minilm")])
def test_listed_sizes_are_those_of_the_packages_files(
    name: str, file: str, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue(file)  # skips where it is not fetched
    listed, stored = load_config(str(listed_sizes.described(name))), load_config(name)
    assert expected_shapes(listed) == expected_shapes(stored)
    assert listed.num_hidden_layers == stored.num_hidden_layers


def test_only_what_is_listed_whole_can_be_counted_and_an_unknown_model_is_named(
    tiny: Callable[[str], Path],
) -> None:
    assert LISTED and hub.load_sources()["biobert"].intermediate == 0
    for name in ("biobert", "some/model@" + "0" * 40, str(tiny("qwen2"))):
        assert not listed_sizes.has_listed_sizes(name)
    with pytest.raises(SourceError, match="unknown hub model 'smolm'"):
        listed_sizes.described("smolm")
