"""The four 4D ops and the choice of the backend that runs them.

`fsdino/ops/reference.py` defines what each op means; `CONTRIBUTING.md` tells how to add an op or
a backend.

Gradients come from the backend that ran the call. Derivatives of higher order (`create_graph`),
those in forward mode and all under `torch.func` are PyTorch's own, through the reference in plain
PyTorch, on every backend. What `torch.compile` made has gradients alone: PyTorch raises an error
where one of them is differentiated again.
"""

from fsdino.ops.backends import use_backend
from fsdino.ops.center_pivot import center_pivot_block4d, center_pivot_conv4d
from fsdino.ops.correlation import correlation4d
from fsdino.ops.fused import correlation_center_pivot4d

__all__ = [
    "center_pivot_block4d",
    "center_pivot_conv4d",
    "correlation4d",
    "correlation_center_pivot4d",
    "use_backend",
]
