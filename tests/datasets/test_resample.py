"""Volumes read on a CPU have the bits of torch's own sampling, at the borders too."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mvl.datasets import resample
from mvl.datasets.augment import rotation


@pytest.mark.parametrize("size", [(12, 16, 10), (7, 5, 9), (16, 16, 16)])
@pytest.mark.parametrize("angles", [(0.0, 0.0, 0.0), (0.05, -0.08, 0.03), (1.2, 0.7, -2.0)])
def test_it_has_the_bits_of_grid_sample(size, angles, monkeypatch):
    monkeypatch.setattr(resample, "CHUNK", 300)
    theta = torch.stack(
        [
            resample.sampling_theta(rotation(angles), size),
            resample.sampling_theta(rotation([a / 2 for a in angles]), size),
        ]
    )
    image, label = torch.randn(2, 3, *size), (torch.rand(2, 1, *size) * 3).to(torch.uint8)
    turned, moved = resample.resample(image, label, theta)
    for k in range(2):
        grid = F.affine_grid(theta[k : k + 1], [1, 1, *size], align_corners=False)
        assert torch.equal(turned[k : k + 1], resample.read(image[k : k + 1], grid, "bilinear"))
        assert torch.equal(
            moved[k : k + 1],
            resample.read(label[k : k + 1].float(), grid, "nearest").to(torch.uint8),
        )
