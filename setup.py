"""Build entry point; the package itself is declared in pyproject.toml.

The extension is compiled here where PyTorch can be imported: `pip install --no-build-isolation .`
beside the PyTorch that it will run with. Otherwise, or where compiling fails, the package is pure
Python, and `fsdino build` compiles later.
"""

from __future__ import annotations

import os
import runpy
from types import SimpleNamespace
from typing import Any

from setuptools import setup

# What differs between an extension with CUDA's kernels and one without.
COMPILED = ("sources", "extra_compile_args", "include_dirs", "library_dirs", "libraries")


def extension() -> dict[str, Any]:
    """Arguments of `setup` that compile csrc/ as fsdino._C; none without PyTorch."""
    try:
        import torch
    except (ImportError, OSError):
        return {}
    flags = SimpleNamespace(**runpy.run_path("csrc/flags.py"))
    os.environ.setdefault("MAX_JOBS", str(flags.jobs()))
    gpus = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]
    cuda = "" if flags.extra() else flags.cuda(torch.version.cuda, gpus)
    with_cuda = not isinstance(cuda, str)
    if with_cuda:
        os.environ.update(cuda.environment())  # read when the next line imports
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

    compiler = flags.compiler()
    openmp = flags.openmp(compiler) if compiler else []

    def native(cuda: Any) -> Any:
        """The extension, with CUDA's kernels or, where that is a reason against them, without."""
        with_cuda = not isinstance(cuda, str)
        described = flags.defines(torch.__version__) + (cuda.defines() if with_cuda else [])
        own = [*flags.COMPILE, *openmp, *described, *flags.extra()]
        return (CUDAExtension if with_cuda else CppExtension)(
            "fsdino._C",
            [os.path.relpath(path) for path in flags.sources(with_cuda)],
            extra_compile_args={"cxx": own, "nvcc": [*flags.CUDA_COMPILE]},
            extra_link_args=[*openmp, *flags.extra()],
            optional=True,
        )

    class OptionalBuild(BuildExtension):
        """Reports what does not compile, and continues without it."""

        def build_extensions(self) -> None:
            try:
                super().build_extensions()
            except Exception as error:
                reason = str(error).strip().splitlines()[-1]
                alone = native("")
                left = "C++" if self.extensions[0].sources == alone.sources else "CUDA"
                self.warn(f"without fsdino's {left} kernels (`fsdino build` retries): {reason}")
                if left == "C++":
                    self.extensions.clear()
                else:
                    for name in COMPILED:
                        setattr(self.extensions[0], name, getattr(alone, name))
                    self.build_extensions()

    return {"ext_modules": [native(cuda)], "cmdclass": {"build_ext": OptionalBuild}}


setup(**extension())
