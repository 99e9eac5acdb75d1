"""Triton kernels, one file for each op, will live here: the package `fsdino.kernels`."""

if __name__ == "kernels":
    raise ImportError(
        "this folder is the package fsdino.kernels and not the PyPI project of the name kernels; "
        "use `import fsdino.kernels`"
    )
