"""Backend `triton`: the ops on NVIDIA GPUs; the package `fsdino.kernels`.

`backend.py` says where it runs, and imports the rest, and with it Triton, at the first call.
`walk.py` is the convolution, `weight_gradients.py` what trains it, `correlation.py` the
correlation, and `norm.py` what follows them.
"""

if __name__ == "kernels":
    raise ImportError(
        "this folder is the package fsdino.kernels and not the PyPI project of the name kernels; "
        "use `import fsdino.kernels`"
    )
