"""The 4D ops and the choice of the backend that runs them.

`fsdino/ops/reference.py` defines each op; `CONTRIBUTING.md` lists the steps for adding one.

Gradients come from the backend that ran the call. Derivatives of higher order (`create_graph`), in
forward mode or under `torch.func` are PyTorch's own on every backend, through the reference.
Compiled functions only have gradients: PyTorch raises an error if one is differentiated again.

Example:
    >>> import torch
    >>> from fsdino import ops
    >>> features = torch.rand(1, 2, 16, 4, 4)  # [B, L, C, H, W]
    >>> ops.correlation4d(features, features).shape
    torch.Size([1, 2, 4, 4, 4, 4])
"""

from fsdino.ops.backends import use_backend
from fsdino.ops.center_pivot import center_pivot_block4d, center_pivot_conv4d
from fsdino.ops.correlation import correlation4d
from fsdino.ops.fused import correlation_center_pivot4d
from fsdino.ops.squeeze import squeeze4d

__all__ = [
    "center_pivot_block4d",
    "center_pivot_conv4d",
    "correlation4d",
    "correlation_center_pivot4d",
    "squeeze4d",
    "use_backend",
]
