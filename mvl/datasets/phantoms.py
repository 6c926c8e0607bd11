"""Phantoms: made-up scans that a network must look at closely, in the Decathlon's layout so that
every later step is the same code.

Each holds one curved two-part structure (1 anterior, 2 posterior) like a hippocampus in size, among
rods, balls and plates of similar intensity, in random pose, with partial volume, texture, a bias
field and Rician noise; some have thick slices, some are stored left-posterior.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from scipy.ndimage import gaussian_filter

from mvl.core.files import sha256_bytes, write_json
from mvl.core.seeds import draw_seed
from mvl.datasets.made import ensure_made
from mvl.datasets.nifti import Affine, nifti_bytes

VERSION = 2
"""Raised whenever a change of this file changes the bytes of a phantom; folders of another version
are made anew."""
Points = Float32[np.ndarray, "*grid 3"]
Field = Float32[np.ndarray, "*grid"]


def ensure_phantoms(folder: Path, num_cases: int = 80, seed: int = 0) -> Path:
    """Return `folder` with this version's phantoms, `dataset.json` and `manifest.json`, made now
    unless they lie there.

    Raises:
        TaskError: something else lies there, or the place cannot be written.
    """

    def write_all(partial: Path) -> None:
        _write_all(partial, num_cases, seed)

    return ensure_made(folder, "phantoms", "dataset.json", recipe(num_cases, seed), write_all)


def recipe(num_cases: int, seed: int) -> dict[str, int]:
    """What a folder of phantoms is a function of."""
    return {"version": VERSION, "num_cases": num_cases, "seed": seed}


def _write_all(folder: Path, num_cases: int, seed: int) -> None:
    names, hashes = [f"phantom_{i:03d}" for i in range(num_cases)], {}
    for kind in ("imagesTr", "labelsTr"):
        (folder / kind).mkdir(parents=True)
    for index, name in enumerate(names):
        image, label, affine = make_phantom(seed, index)
        for kind, voxels in (("imagesTr", image), ("labelsTr", label)):
            data = nifti_bytes(voxels, affine)
            (folder / kind / f"{name}.nii.gz").write_bytes(data)
            hashes[f"{kind}/{name}.nii.gz"] = sha256_bytes(data)
    write_json(folder / "manifest.json", {"task": "phantoms", "files": hashes})
    write_json(folder / "dataset.json", _description(names, seed))


def _description(names: list[str], seed: int) -> dict[str, Any]:
    pairs = [
        {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}
        for name in names
    ]
    return {
        "name": "phantoms",
        "description": "Phantoms made by mvl: no person was scanned",
        "licence": "MIT",
        "tensorImageSize": "3D",
        "modality": {"0": "phantom"},
        "labels": {"0": "background", "1": "anterior", "2": "posterior"},
        "numTraining": len(names),
        "numTest": 0,
        "training": pairs,
        "test": [],
        "phantoms": recipe(len(names), seed),
    }


def make_phantom(seed: int, index: int) -> tuple[np.ndarray, UInt8[np.ndarray, "x y z"], Affine]:
    """Image (int16, x y z), label (0, 1, 2) and affine (mm) of one phantom, a function of (seed,
    index) alone."""
    rng = np.random.default_rng(draw_seed(seed, "phantom", index))
    spacing = np.ones(3)
    if rng.random() < 0.25:
        spacing[rng.integers(3)] = rng.choice([1.5, 2.0])
    shape = np.round(rng.uniform(35, 45, 3) / spacing).astype(int)
    occupancy, front, clutter = _scene(rng, shape, spacing)
    clean = _mix(rng, occupancy, front, clutter)
    image = _scan(rng, clean)
    label = np.where(occupancy >= 0.5, np.where(front, 1, 2), 0).astype(np.uint8)
    return _stored(rng, image, label, spacing)


def _grid(shape: np.ndarray, spacing: np.ndarray, shift: np.ndarray) -> Points:
    """Positions in mm of voxel centres (moved by `shift` voxels), origin at the middle of the
    scan."""
    axes = [(np.arange(n) - (n - 1) / 2 + d) * s for n, s, d in zip(shape, spacing, shift)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).astype(np.float32)


def _scene(
    rng: np.random.Generator, shape: np.ndarray, spacing: np.ndarray
) -> tuple[Field, np.ndarray, Field]:
    """Share of each voxel that the structure fills, which voxels are nearer to its front part, and
    the share that distractors fill."""
    curve, radius = _structure(rng)
    shapes = [_distractor(rng) for _ in range(rng.integers(6, 10))]
    layers = np.maximum(1, np.round(spacing * 1.2)).astype(int)
    shifts = (
        [np.zeros(3)]
        if layers.max() == 1
        else [np.where(layers > 1, d, 0.0) for d in (-0.25, 0.25)]
    )
    parts = [_occupancy(_grid(shape, spacing, shift), curve, radius, shapes) for shift in shifts]
    own, front, clutter = (
        np.asarray(np.mean([part[k] for part in parts], axis=0, dtype=np.float32)) for k in range(3)
    )
    return own, front > 0.5, clutter


def _occupancy(
    points: Points, curve: np.ndarray, radius: np.ndarray, shapes: list[Any]
) -> tuple[Field, np.ndarray, Field]:
    distance, nearest = tube_distance(points, curve, radius)
    clutter = np.zeros(points.shape[:-1], np.float32)
    for shape in shapes:
        clutter = np.maximum(clutter, soft(shape(points)))
    clutter *= soft(2.5 - distance)
    return soft(distance), nearest < 0.45 * len(curve), clutter


def soft(distance: Field) -> Field:
    """Filled share of a 1 mm voxel whose centre lies `distance` mm outside a surface."""
    return np.clip(0.5 - distance, 0, 1)


def tube_distance(
    points: Points, curve: np.ndarray, radius: np.ndarray
) -> tuple[Field, np.ndarray]:
    """Distance in mm to the surface of a tube of varying radius around `curve` (n, 3), negative
    inside; index of the nearest point."""
    best = np.full(points.shape[:-1], np.inf, np.float32)
    nearest = np.zeros(points.shape[:-1], np.int16)
    for k, (centre, r) in enumerate(zip(curve.astype(np.float32), radius.astype(np.float32))):
        offset = points - centre
        distance = np.sqrt(np.einsum("...i,...i", offset, offset)) - r
        closer = distance < best
        best[closer], nearest[closer] = distance[closer], k
    return best, nearest


def _structure(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Centreline (n, 3) in mm and radius of a bent, slightly twisted tube: a thick front, a thin
    tail."""
    t = np.linspace(-1, 1, 25)
    length, bend, twist = rng.uniform(12, 15), rng.uniform(5, 9), rng.uniform(-2, 2)
    curve = np.stack(
        [bend * t**2 - bend / 3, length * t, twist * t**3 + 2.5 * np.sin(2 * t)], axis=1
    )
    thick, thin = rng.uniform(5.2, 6.4), rng.uniform(2.8, 3.6)
    radius = thin + (thick - thin) / (1 + np.exp(5 * (t + 0.1)))
    pose = _rotation(rng.uniform(-25, 25, 3))
    return (curve @ pose.T + rng.uniform(-4, 4, 3)).astype(np.float32), radius


def _distractor(rng: np.random.Generator) -> Any:
    """Signed distance function in mm of a rod, a ball or a curved plate somewhere in the scan."""
    centre, turn = rng.uniform(-18, 18, 3), _rotation(rng.uniform(-180, 180, 3)).astype(np.float32)
    kind, size, reach = (
        rng.choice(["rod", "ball", "plate"], p=[0.5, 0.25, 0.25]),
        rng.uniform(2.0, 4.0),
        rng.uniform(8, 14),
    )

    def distance(points: Points) -> Field:
        x, y, z = np.moveaxis((points - centre.astype(np.float32)) @ turn, -1, 0)
        along = np.clip(y, -reach, reach) if kind == "rod" else np.float32(0)
        if kind == "plate":
            return np.maximum(
                np.abs(z - x**2 / 40) - np.float32(size / 2), np.hypot(x, y) - np.float32(reach)
            ).astype(np.float32)
        return (
            np.sqrt(x**2 + (y - along) ** 2 + z**2)
            - np.float32(size * (1.4 if kind == "ball" else 1))
        ).astype(np.float32)

    return distance


def _rotation(degrees: np.ndarray) -> np.ndarray:
    a, b, c = np.deg2rad(degrees)
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return x @ y @ z


def _mix(rng: np.random.Generator, occupancy: Field, front: np.ndarray, clutter: Field) -> Field:
    """Noise-free intensity: tissue with texture, distractors as bright as the structure on average,
    each filling its share of a voxel."""
    texture = gaussian_filter(rng.standard_normal(occupancy.shape), 2.0).astype(np.float32)
    tissue = 0.5 + 0.05 * texture / texture.std()
    own = np.where(front, rng.uniform(0.74, 0.80), rng.uniform(0.70, 0.76)).astype(np.float32)
    other = np.float32(rng.uniform(0.70, 0.82))
    return (
        tissue * (1 - occupancy - clutter).clip(0)
        + own * occupancy
        + other * clutter * (1 - occupancy)
    ).astype(np.float32)


def _scan(rng: np.random.Generator, clean: Field) -> np.ndarray:
    """What a scanner makes of it: a smooth bias field of about 15 %, Rician noise, an arbitrary
    unit, int16."""
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in clean.shape], indexing="ij")
    terms = [x, y, z, x * y, y * z, x * z, x**2, y**2, z**2]
    bias = np.exp(sum(c * term for c, term in zip(rng.uniform(-0.08, 0.08, len(terms)), terms)))
    sigma = rng.uniform(0.02, 0.045)
    real, imaginary = rng.normal(0, sigma, (2, *clean.shape))
    return np.round(np.hypot(clean * bias + real, imaginary) * rng.uniform(300, 900)).astype(
        np.int16
    )


def _stored(
    rng: np.random.Generator, image: np.ndarray, label: np.ndarray, spacing: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Voxels and affine (mm) as stored: right-anterior-superior, or in one case of five
    left-posterior-superior."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = np.round(rng.uniform(-30, 30, 3))
    if rng.random() < 0.2:
        flip = np.diag([-1.0, -1.0, 1.0, 1.0])
        flip[:2, 3] = np.array(image.shape[:2]) - 1
        image, label, affine = image[::-1, ::-1], label[::-1, ::-1], affine @ flip
    return np.ascontiguousarray(image), np.ascontiguousarray(label), affine
