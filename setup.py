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
    """Arguments of `setup` that compile csrc/ into fsdino/; none without PyTorch."""
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

    def native(cuda: Any) -> list[Any]:
        """Both libraries, with CUDA's kernels or, where that is a reason against them, without."""
        with_cuda = not isinstance(cuda, str)
        described = flags.defines(torch.__version__) + (cuda.defines() if with_cuda else [])
        own = [*flags.COMPILE, *openmp, *described, *flags.extra()]
        libraries = [
            (CUDAExtension if with_cuda else CppExtension)(
                f"fsdino.{name}",
                [os.path.relpath(path) for path in sources],
                extra_compile_args={"cxx": own, "nvcc": [*flags.CUDA_COMPILE]},
                extra_link_args=[*openmp, *flags.extra()],
                optional=True,
            )
            for name, sources in flags.sources(with_cuda).items()
        ]
        for library in libraries:
            library.libraries.remove("torch_python")  # neither uses it, and it needs Python
        return libraries

    class OptionalBuild(BuildExtension):
        """Reports what does not compile, and continues without it."""

        def build_extensions(self) -> None:
            try:
                super().build_extensions()
            except Exception as error:
                reason = str(error).strip().splitlines()[-1]
                alone = native("")
                same = self.extensions[0].sources == alone[0].sources
                left = "C++" if same else "CUDA"
                self.warn(f"without fsdino's {left} kernels (`fsdino build` retries): {reason}")
                if left == "C++":
                    self.extensions.clear()
                else:
                    for library, other in zip(self.extensions, alone, strict=True):
                        for name in COMPILED:
                            setattr(library, name, getattr(other, name))
                    self.build_extensions()

        def get_ext_filename(self, name: str) -> str:
            """The kernels are not a Python module, and so have no suffix of a Python."""
            if name.rpartition(".")[2] == flags.KERNELS:
                return os.path.join(*name.split(".")) + ".so"
            return super().get_ext_filename(name)

    return {"ext_modules": native(cuda), "cmdclass": {"build_ext": OptionalBuild}}


setup(**extension())
