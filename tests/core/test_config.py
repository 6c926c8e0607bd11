"""Configs: unknown keys and wrong values are refused by name; every study and system in the package
is readable."""

import dataclasses
import inspect
import math

import pytest
import yaml

from mvl.core import block_config
from mvl.core import config as config_module
from mvl.core.config import (
    CONFIG_DIR,
    Config,
    ConfigError,
    DataConfig,
    ModelConfig,
    TrainConfig,
    build,
    check,
    load_config,
    merge,
    to_dict,
)
from mvl.core.config_values import coerce
from mvl.study.grid import study_runs

PAPER = study_runs("paper")
STUDIES = sorted(path.stem for path in (CONFIG_DIR / "studies").glob("*.yaml"))


def test_an_unknown_key_is_named_with_a_hint():
    with pytest.raises(
        ConfigError, match=r"train: unknown key 'train_epoch' \(did you mean 'train_epochs'\?\)"
    ):
        build(TrainConfig, {"train_epoch": 3}, "train")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train_epochs", 3.0),
        ("train_epochs", True),
        ("lr", "1e-3"),
        ("lr", math.nan),
        ("lr", math.inf),
        ("optimizer", "lion"),
        ("compile", 1),
        ("precision", "fp8"),
        ("cuda_graph", 1),
    ],
)
def test_a_wrong_value_is_refused_and_named(key, value):
    with pytest.raises(ConfigError, match=f"train.{key}"):
        build(TrainConfig, {key: value}, "train")


def test_whole_numbers_serve_as_floats_and_lists_as_tuples():
    made = build(DataConfig, {"rotate_degrees": 5, "img_size": [8, 8, 8]}, "data")
    assert made.rotate_degrees == 5.0
    assert isinstance(made.rotate_degrees, float)
    assert made.img_size == (8, 8, 8)


@pytest.mark.parametrize(
    ("field", "value"),
    [("fraction", 0.0), ("fraction", 1.5), ("fold", 10), ("fold", -1), ("seed", -1)],
)
def test_a_run_outside_its_range_is_refused(field, value):
    with pytest.raises(ConfigError, match=field):
        check(dataclasses.replace(Config(), **{field: value}))


@pytest.mark.parametrize(
    ("part", "field", "value", "named"),
    [
        ("data", "img_size", (60, 64, 64), "img_size"),
        ("data", "img_size", (64, 64), "differ in length"),
        ("model", "hidden_size", 66, "hidden_size"),
        ("model", "dropout_rate", 1.0, "dropout_rate"),
        ("train", "accumulate", 3, "accumulate"),
        ("model", "multi_scale_fusion", True, "medvisionllama_v1"),
        ("train", "train_epochs", 0, "train_epochs must be at least 1, got 0"),
        ("train", "accumulate", 0, "accumulate must be at least 1"),
        ("train", "grad_clip", -1.0, "grad_clip must be at least 0"),
        ("train", "weight_decay", -0.1, "weight_decay must be at least 0"),
        ("train", "warmup_fraction", -0.1, "warmup_fraction"),
        ("model", "num_heads", 0, "num_heads must be at least 1"),
        ("model", "patch_size", (0, 8, 8), "patch_size must be at least 1"),
        ("data", "img_size", (), "img_size must be at least 1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(part, field, value, named):
    config = dataclasses.replace(
        Config(), **{part: dataclasses.replace(getattr(Config(), part), **{field: value})}
    )
    with pytest.raises(ConfigError, match=named):
        check(config)


def test_a_config_survives_yaml():
    config = load_config("quick", "phantoms", "medvisionllama_v3_r16", 0.3, 2, 1)
    assert build(Config, yaml.safe_load(yaml.safe_dump(to_dict(config))), "x") == config


def test_precedence_is_defaults_system_study_task_fraction_override(tmp_path, monkeypatch):
    (tmp_path / "studies").mkdir()
    (tmp_path / "systems").mkdir()
    (tmp_path / "systems" / "a.yaml").write_text("model: {r: 2, lora_alpha: 3}\n")
    study = (
        "tasks: [phantoms]\nmodel: {r: 8, hidden_size: 32}\noverrides: {a: {model: {hidden_size:"
        " 16}}}\n"
    )
    study += "task_overrides: {phantoms: {model: {hidden_size: 48, mlp_dim: 24}}}\n"
    study += "fraction_overrides: {0.1: {model: {mlp_dim: 12, hidden_size: 64}}}\n"
    (tmp_path / "studies" / "s.yaml").write_text(study)
    monkeypatch.setattr(config_module, "CONFIG_DIR", tmp_path)
    model = load_config("s", "phantoms", "a").model
    assert (model.r, model.lora_alpha, model.hidden_size, model.mlp_dim, model.num_heads) == (
        8,
        3,
        16,
        24,
        4,
    )
    model = load_config("s", "phantoms", "a", fraction=0.1).model
    assert (model.hidden_size, model.mlp_dim) == (16, 12)


def test_merge_leaves_its_arguments_alone():
    base = {"a": {"b": 1}}
    assert merge(base, {"a": {"c": 2}}) == {"a": {"b": 1, "c": 2}}
    assert base == {"a": {"b": 1}}


def test_unknown_names_say_what_there_is():
    with pytest.raises(ConfigError, match="did you mean 'quick'"):
        load_config("quik", "phantoms", "vit_baseline")
    with pytest.raises(ConfigError, match="vit_baseline"):
        load_config("quick", "phantoms", "vit_base")


def test_every_field_has_its_help_under_it():
    for cls in (DataConfig, block_config.TokenBlockConfig, ModelConfig, TrainConfig, Config):
        source = inspect.getsource(cls).splitlines()
        for field in dataclasses.fields(cls):
            at = next(i for i, line in enumerate(source) if line.startswith(f"    {field.name}:"))
            assert source[at + 1].strip().startswith('"'), (
                f"{cls.__name__}.{field.name} has no help"
            )


@pytest.mark.parametrize("study", STUDIES)
def test_every_study_of_the_package_is_readable(study):
    grid = PAPER if study == "paper" else study_runs(study)
    assert grid
    assert len({(c.task, c.system, c.fraction, c.fold, c.seed) for c in grid}) == len(grid)


def test_the_paper_study_is_the_papers_protocol():
    grid = [run for run in PAPER if run.system == "medvisionllama_v3" and run.fraction == 1.0]
    assert len({run.task for run in grid}) == 10
    assert {run.fold for run in grid} == {0, 1, 2, 3, 4}
    run = grid[0]
    assert (run.data.img_size, run.model.patch_size) == ((128, 128, 128), (8, 8, 8))
    assert (
        run.model.hidden_size,
        run.model.encoder_layers + run.model.decoder_layers,
        run.model.num_heads,
    ) == (64, 16, 4)
    assert (run.train.train_epochs, run.train.batch_size, run.model.token_block.layer) == (
        100,
        4,
        31,
    )


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"architecture": "cnn", "permute_patches": True}, "permute_patches needs a ViT"),
        (
            {"architecture": "vit_baseline", "auxiliary_path": True},
            "auxiliary_path needs MedVisionLlama",
        ),
        (
            {"architecture": "llm4seg", "auxiliary_path": True},
            "auxiliary_path needs MedVisionLlama",
        ),
        ({"encoder_layers": -1}, "encoder_layers must be at least 0, got -1"),
    ],
)
def test_switches_of_other_networks_are_refused(model, message):
    with pytest.raises(ConfigError, match=message):
        check(build(Config, {"model": model}, "test"))


def test_no_vit_block_at_all_is_allowed():
    assert (
        check(
            build(Config, {"model": {"encoder_layers": 0, "decoder_layers": 0}}, "test")
        ).model.encoder_layers
        == 0
    )


def test_a_value_is_never_rounded_nor_guessed():
    assert coerce(float, 1, "train.lr") == 1.0 and coerce(tuple[int, ...], [1, 2], "x") == (1, 2)
    for kind, value in ((int, 1.0), (bool, 1), (float, "1e-3"), (int, True)):
        with pytest.raises(ConfigError, match="expected"):
            coerce(kind, value, "train.x")


def test_what_one_reader_changes_is_not_anothers_and_a_changed_file_is_read_anew(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("data: {folds: [0, 1]}\n")
    config_module.read_yaml(path)["data"]["folds"].append(9)
    assert config_module.read_yaml(path) == {"data": {"folds": [0, 1]}}
    path.write_text("data: {folds: [2]}\n")
    assert config_module.read_yaml(path) == {"data": {"folds": [2]}}
