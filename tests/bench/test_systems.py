"""The table of systems is what the networks really have."""

import pytest

from mvl.bench import systems
from mvl.cli.parser import parser
from mvl.core import run_folder
from mvl.core.config import CONFIG_DIR, load_config, named, system_names
from mvl.models import describe
from mvl.publish import systems_page
from mvl.study.grid import study_runs

NEVER_TRAINED = set(systems.NEVER_TRAINED)
SMOKE = {run_folder.run_name(run) for run in study_runs("smoke")}


def test_every_system_can_be_configured_at_the_released_sizes():
    deeper = {"vit_depth": (64, 20, 4), "vit_depth_released": (1024, 20, 32)}
    for name in [name for name in system_names() if name.startswith(("vit", "medvisionllama"))]:
        model = describe.system_config(name).model
        assert (
            model.hidden_size,
            model.encoder_layers + model.decoder_layers,
            model.num_heads,
        ) == deeper.get(name, (64, 16, 4)), name


def test_the_largest_control_is_counted_without_memory_for_it():
    assert describe.describe_system("vit_mlp_released")["total"] > 5_700_000_000


def test_the_baseline_has_nothing_frozen_and_its_counts_add_up():
    row = describe.describe_system("vit_baseline")
    assert row["frozen"] == 0
    assert row["trainable"] == row["total"] > 500_000
    assert row["spatial_dims"] == 3
    assert row["source"]


@pytest.mark.parametrize("name", system_names())
def test_the_head_of_a_system_is_what_is_measured(name):
    """Command, parameters and cost at the top of each YAML are those of the network and of
    data/bench.json; its command is one of the smoke study."""
    text = (CONFIG_DIR / "systems" / f"{name}.yaml").read_text()
    assert text.splitlines()[:2] == systems.header(name), f"run `mvl bench --record {name}`"
    words = text.splitlines()[0].removeprefix("# mvl ").split()
    args = parser().parse_args(words)
    assert args.system == name
    if name not in NEVER_TRAINED:
        assert (
            run_folder.run_name(load_config(args.study, args.task, args.system, args.fraction))
            in SMOKE
        )
    described = named("systems", name)
    assert described["title"] and described["source"] and described["differs"]


def test_the_smoke_study_has_every_system():
    assert {run.system for run in study_runs("smoke")} == set(system_names()) - NEVER_TRAINED


def test_every_system_was_measured():
    assert set(systems.read_bench()["systems"]) == set(system_names()) - NEVER_TRAINED
    assert not [
        name
        for name in set(system_names()) - NEVER_TRAINED
        if "was not measured" in systems.header(name)[1]
    ]


def test_the_table_has_a_row_for_each_system_with_its_switches():
    table = systems_page.systems_table()
    assert all(f"| `{name}` |" in table for name in system_names())
    assert "`token_block.kind: random`" in table
