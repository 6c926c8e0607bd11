"""Names for the tensors that pass between rooms; checked at run time by the test run (jaxtyping
with beartype).

B cases, C image channels, K classes, T tokens, D width; `*spatial` is (H, W) or (H, W, D).
"""

from __future__ import annotations

from jaxtyping import Float, UInt8
from torch import Tensor

Image = Float[Tensor, "B C *spatial"]
Labels = UInt8[Tensor, "B 1 *spatial"]
Logits = Float[Tensor, "B K *spatial"]
Tokens = Float[Tensor, "B T D"]
