"""Configuration: frozen dataclasses; the string under a field is its help; unknown keys raise,
naming the key."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mvl.core.block_config import TokenBlockConfig
from mvl.core.config_values import CONFIG_DIR as CONFIG_DIR
from mvl.core.config_values import ROOT as ROOT
from mvl.core.config_values import ConfigError as ConfigError
from mvl.core.config_values import build as build
from mvl.core.config_values import did_you_mean as did_you_mean
from mvl.core.config_values import merge as merge
from mvl.core.config_values import read_yaml as read_yaml
from mvl.core.config_values import to_dict as to_dict


@dataclass(frozen=True)
class DataConfig:
    """What a system sees of a case."""

    img_size: tuple[int, ...] = (64, 64, 64)
    """Voxels per axis (right, anterior, superior) of the grid that networks see; two axes (rows,
    columns) for pictures and slices."""
    resample: str = "resize"
    """resize: the whole scan is stretched to img_size, as released; pad_crop: resampled to
    spacing_mm, then padded or cropped centrally."""
    spacing_mm: tuple[float, ...] = (1.0, 1.0, 1.0)
    "Voxel size in mm for pad_crop; not used by resize."
    labels: str = "foreground"
    """foreground: every label above 0 is one class, as released; all: one channel per label beside
    the background."""
    augment: bool = True
    "Augment training cases, each draw a function of (seed, epoch, case)."
    augmentation: str = "rotate_intensity"
    """rotate_intensity: as MedVisionLlama; flip_rot90: as LLM4Seg; released_planes, one_plane: the
    audit's (see datasets/augment.py)."""
    rotate_degrees: float = 5.0
    "Largest rotation about each axis, image and label together, degrees."
    intensity_factor: float = 0.1
    "Largest relative change of contrast, and of brightness in standard deviations."
    label_noise: str = "none"
    """Damage to training labels: none; boundary: erosion, dilation or elastic change; region: whole
    regions dropped or added."""
    label_noise_rate: float = 0.0
    """Share of the training cases whose labels are damaged, in [0, 1]; validation and test labels
    never are."""
    cache_gb: float = 4.0
    "Cap on decoded cases held in memory, GB; past it cases are decoded again on each visit."
    num_workers: int = 0
    "Loader processes; results do not depend on it."
    split: str = "folds"
    """folds: the committed lists; persons: the committed lists that keep the scans of one person
    together, where the data tell; copies: versions of each case on both sides, as released, for the
    audit (see datasets/released_faults.py)."""


@dataclass(frozen=True)
class ModelConfig:
    """Network sizes; defaults are the released code's ViT (hidden 64, 16 blocks, 4 heads, dropout
    0.2)."""

    architecture: str = "vit_baseline"
    "Key of mvl.models.build.SYSTEMS."
    patch_size: tuple[int, ...] = (8, 8, 8)
    "Voxels per patch and axis; img_size must be a multiple."
    hidden_size: int = 64
    "Width of the ViT's tokens."
    num_heads: int = 4
    "Attention heads; hidden_size must be a multiple."
    mlp_dim: int = 256
    "Hidden width of the ViT's MLPs."
    encoder_layers: int = 8
    """ViT blocks before the token block; with 0 here and 0 after it the token block alone mixes
    tokens."""
    decoder_layers: int = 8
    "ViT blocks after the token block."
    dropout_rate: float = 0.2
    """Dropout on the outputs of attention and MLP (the released code drops attention probabilities
    too)."""
    block_position: str = "bottleneck"
    """bottleneck: between ViT encoder and decoder (the paper's figure); after_embedding: before
    every ViT block and the positions (the released code)."""
    permute_patches: bool = False
    """ViTs and MedVisionLlama: one fixed permutation of the patches, a function of the seed, before
    positions are added; undone at the head."""
    auxiliary_path: bool = False
    """MedVisionLlama: in training each case goes through the block or past it, evenly drawn; in
    validation and test none goes through it."""
    hybrid_attention: bool = False
    """Version 1: global self-attention and local convolutional attention with a learned mix, in
    every encoder block."""
    multi_scale_fusion: bool = False
    "Version 1: features at several scales brought to one grid and mixed, after the block."
    extra_mlp: tuple[int, ...] = ()
    "Hidden widths of a GELU MLP after the ViT blocks (the ViT-MLP control); empty: none."
    backbone: str = "cmunext"
    "LLM4Seg's CNN: cmunext | unet."
    channels: tuple[int, ...] = (16, 32, 128, 160, 256)
    "CNNs: width of each stage."
    depths: tuple[int, ...] = (1, 1, 1, 3, 1)
    "CMUNeXt: blocks of each stage."
    kernel_sizes: tuple[int, ...] = (3, 3, 7, 7, 7)
    "CMUNeXt: depthwise kernel of each stage."
    mapper: str = "lora"
    """lora: frozen random linear map plus rank-r adapter and bias, as released; linear: one trained
    linear map."""
    r: int = 4
    "Rank of the mappers' adapters."
    lora_alpha: int = 1
    "LoRA scale is lora_alpha / r (the released code leaves loralib's default of 1)."
    token_block: TokenBlockConfig = field(default_factory=TokenBlockConfig)
    "The layer between the mappers (hybrids only)."


@dataclass(frozen=True)
class TrainConfig:
    """How a system is trained."""

    train_epochs: int = 100
    "Passes over the training cases."
    batch_size: int = 4
    "Cases per optimiser step, over all processes."
    accumulate: int = 1
    "Micro-batches that one optimiser step is split into."
    lr: float = 2e-3
    "Peak learning rate (README of the released code)."
    optimizer: str = "adamw"
    "adamw | adam | sgd."
    momentum: float = 0.9
    "SGD's momentum."
    weight_decay: float = 0.01
    "Weight decay; AdamW exempts biases, norms and positions, SGD decays everything, as LLM4Seg."
    schedule: str = "one_cycle"
    """one_cycle: linear warm-up, then cosine to zero; poly: (1 - step / steps) ** 0.9, as LLM4Seg;
    constant."""
    loss: str = "dice_ce"
    """dice_ce: Dice + cross-entropy; bce_dice: 0.5 BCE + soft Dice per case with smoothing 1e-5, as
    LLM4Seg; bce_dice_released: the audit's."""
    warmup_fraction: float = 0.1
    "Share of the steps that warm up."
    grad_clip: float = 1.0
    "Largest gradient norm; 0 turns clipping off."
    precision: str = "fp32"
    """fp32 | tf32 | bf16 | fp16 (the last two by autocast); refused where the device has it not
    (see mvl/training/precision.py)."""
    compile: bool = False
    """Run the network through torch.compile, which takes minutes to start; on a CPU it seldom pays
    (book/scale.md)."""
    cuda_graph: bool = False
    """On a CUDA GPU, run each step of a full batch as one recorded graph (see
    mvl/training/step_graph.py)."""
    checkpoint_s: float = 30.0
    "Seconds between checkpoints, which are made at the ends of epochs; 0: at each of them."
    val_interval: int = 1
    "Epochs between validations."
    select: str = "val"
    """What chooses the epoch: val; train_loss, as MedVisionLlama; test, as LLM4Seg: the audit's one
    named look at test cases."""
    gradient_epochs: tuple[int, ...] = ()
    """After how many epochs the agreement of the cases' encoder gradients is measured (ViTs only);
    training is the same with and without (see mvl/training/gradient_agreement.py)."""
    num_threads: int = 1
    "CPU threads of the process (results are bitwise for a given number)."


@dataclass(frozen=True)
class Config:
    """One run: who (study, task, system, fraction, fold, seed) and how (data, model, train)."""

    study: str = "quick"
    "Name of mvl/configs/studies/<study>.yaml."
    task: str = "phantoms"
    "Task name as in data/registry.toml."
    system: str = "vit_baseline"
    "Name of mvl/configs/systems/<system>.yaml."
    fraction: float = 1.0
    "Share of the fold's training cases, in (0, 1]; subsets are nested."
    fold: int = 0
    "Fold, 0-9: block k is the test set."
    seed: int = 0
    "Seed of weights, order, augmentation and dropout."
    data: DataConfig = field(default_factory=DataConfig)
    "What a system sees of a case."
    model: ModelConfig = field(default_factory=ModelConfig)
    "Network."
    train: TrainConfig = field(default_factory=TrainConfig)
    "Training."


def named(kind: str, name: str) -> dict[str, Any]:
    """`mvl/configs/<kind>/<name>.yaml` (kind: systems or studies), or the YAML file that `name` is
    a path of."""
    return read_yaml(
        Path(name) if name.endswith((".yaml", ".yml")) else CONFIG_DIR / kind / f"{name}.yaml"
    )


def system_names() -> list[str]:
    """Names of every system that has a YAML file."""
    return sorted(p.stem for p in (CONFIG_DIR / "systems").glob("*.yaml"))


def section(plan: dict[str, Any], table: str, name: Any) -> dict[str, Any]:
    """A section of a study's table by its name; empty where it, or the table, holds nothing."""
    return (plan.get(table) or {}).get(name) or {}


def load_config(
    study: str, task: str, system: str, fraction: float = 1.0, fold: int = 0, seed: int = 0
) -> Config:
    """The run's full config: defaults < system YAML < study YAML < overrides for that task <
    fraction < system < arm.

    Raises:
        ConfigError: unknown study or system, unknown key, or a value out of range.
    """
    plan = named("studies", study)
    arm = section(plan, "arms", system)
    who = named("systems", arm.get("system", system))
    layers = (
        who,
        plan,
        section(plan, "task_overrides", task),
        section(plan, "fraction_overrides", fraction),
        section(plan, "overrides", system),
        arm,
    )
    parts = {
        k: merge({}, *(layer.get(k) or {} for layer in layers)) for k in ("data", "model", "train")
    }
    extra = set(who) - {"data", "model", "train", "title", "source", "differs"}
    if extra:
        raise ConfigError(f"systems/{system}.yaml: unknown key {sorted(extra)[0]!r}")
    run = dict(
        study=Path(study).stem, task=task, system=system, fraction=fraction, fold=fold, seed=seed
    )
    return check(build(Config, {**run, **parts}, f"{study}/{system}"))


def check(config: Config) -> Config:
    """The same config, or ConfigError naming the first value that is out of range."""
    data, model, train = config.data, config.model, config.train
    where = f"{config.study}/{config.system}"
    least = {
        "data.img_size": (data.img_size, 1),
        "model.patch_size": (model.patch_size, 1),
        "model.num_heads": (model.num_heads, 1),
        "model.r": (model.r, 1),
        "model.encoder_layers": (model.encoder_layers, 0),
        "model.decoder_layers": (model.decoder_layers, 0),
        "train.train_epochs": (train.train_epochs, 1),
        "train.batch_size": (train.batch_size, 1),
        "train.accumulate": (train.accumulate, 1),
        "train.val_interval": (train.val_interval, 1),
        "train.num_threads": (train.num_threads, 1),
        "train.checkpoint_s": (train.checkpoint_s, 0),
        "train.grad_clip": (train.grad_clip, 0),
        "train.weight_decay": (train.weight_decay, 0),
        "seed": (config.seed, 0),
    }
    # These come first: the rules below divide by some of them.
    for name, (value, bound) in least.items():
        values = value if isinstance(value, tuple) else (value,)
        if not values or min(values) < bound:
            raise ConfigError(f"{where}: {name} must be at least {bound}, got {value}")
    vit = model.architecture.startswith(("vit", "medvisionllama"))
    hybrid = model.architecture.startswith("medvisionllama")
    version1 = model.architecture == "medvisionllama_v1" or not (
        model.hybrid_attention or model.multi_scale_fusion
    )
    patches = not vit or all(s % p == 0 for s, p in zip(data.img_size, model.patch_size))
    same_dims = len(data.img_size) == len(model.patch_size)
    rules = {
        f"fraction {config.fraction} is not in (0, 1]": 0 < config.fraction <= 1,
        f"fold {config.fold} is not in 0-9": 0 <= config.fold <= 9,
        f"data.img_size {data.img_size} and model.patch_size {model.patch_size} differ in length": (
            not vit or same_dims
        ),
        f"data.img_size {data.img_size} must have two or three axes": len(data.img_size) in (2, 3),
        f"data.label_noise_rate {data.label_noise_rate} is not in [0, 1]": (
            0 <= data.label_noise_rate <= 1
        ),
        f"data.img_size {data.img_size} is not a multiple of model.patch_size {model.patch_size}": (
            patches
        ),
        f"model.hidden_size {model.hidden_size} is not a multiple of num_heads {model.num_heads}": (
            model.hidden_size % model.num_heads == 0
        ),
        "model.hybrid_attention and model.multi_scale_fusion need architecture medvisionllama_v1,"
        f" not {model.architecture}": version1,
        f"model.extra_mlp needs a ViT, not architecture {model.architecture}": (
            vit or not model.extra_mlp
        ),
        f"model.permute_patches needs a ViT, not architecture {model.architecture}": (
            vit or not model.permute_patches
        ),
        f"model.auxiliary_path needs MedVisionLlama, not architecture {model.architecture}": (
            hybrid or not model.auxiliary_path
        ),
        f"train.gradient_epochs needs a ViT, not architecture {model.architecture}": (
            vit or not train.gradient_epochs
        ),
        f"train.gradient_epochs {train.gradient_epochs} are not within 1 to"
        f" train.train_epochs {train.train_epochs}": (
            all(1 <= epoch <= train.train_epochs for epoch in train.gradient_epochs)
        ),
        f"model.dropout_rate {model.dropout_rate} is not in [0, 1)": 0 <= model.dropout_rate < 1,
        f"train.lr {train.lr} is not in (0, 1]": 0 < train.lr <= 1,
        f"train.warmup_fraction {train.warmup_fraction} is not in [0, 1]": (
            0 <= train.warmup_fraction <= 1
        ),
        f"train.batch_size {train.batch_size} is not a multiple of"
        f" train.accumulate {train.accumulate}": train.batch_size % train.accumulate == 0,
    }
    for message, holds in rules.items():
        if not holds:
            raise ConfigError(f"{where}: {message}")
    return config
