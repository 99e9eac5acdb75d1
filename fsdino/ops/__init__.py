"""The four 4D ops and the choice of the backend that runs them.

`fsdino/ops/reference.py` defines what each op means; `CONTRIBUTING.md` tells how to add an op or
a backend.
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
