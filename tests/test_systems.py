"""The table of systems is what the networks really have."""

from mvl import systems
from mvl.config import system_names


def test_every_system_can_be_configured_at_the_released_sizes():
    deeper = {"vit_depth": (64, 20, 4), "vit_depth_released": (1024, 20, 32)}
    for name in [name for name in system_names() if name.startswith(("vit", "medvisionllama"))]:
        model = systems.system_config(name).model
        assert (model.hidden_size, model.encoder_layers + model.decoder_layers, model.num_heads) == deeper.get(name, (64, 16, 4)), name


def test_the_largest_control_is_counted_without_memory_for_it():
    assert systems.describe_system("vit_mlp_released")["total"] > 5_700_000_000


def test_the_baseline_has_nothing_frozen_and_its_counts_add_up():
    row = systems.describe_system("vit_baseline")
    assert row["frozen"] == 0
    assert row["trainable"] == row["total"] > 500_000
    assert row["spatial_dims"] == 3
    assert row["source"]
