"""The table of systems is what the networks really have."""

from mvl import systems
from mvl.config import system_names


def test_every_system_can_be_configured_at_the_released_sizes():
    for name in system_names():
        model = systems.system_config(name).model
        assert (model.hidden_size, model.encoder_layers + model.decoder_layers, model.num_heads) == (64, 16, 4)


def test_the_baseline_has_nothing_frozen_and_its_counts_add_up():
    row = systems.describe_system("vit_baseline")
    assert row["frozen"] == 0
    assert row["trainable"] == row["total"] > 500_000
    assert row["spatial_dims"] == 3
    assert row["source"]
