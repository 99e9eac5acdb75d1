"""An extension that compiles in a moment, in place of csrc/: for tests of building and loading."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fsdino.ops import build, native

_MARK = """
#define TEXT(...) TEXT_OF(__VA_ARGS__)
#define TEXT_OF(...) #__VA_ARGS__
__attribute__((used)) static const char mark[] =
    "fsdino-extension torch=" TEXT(FSDINO_TORCH) " sources=" TEXT(FSDINO_SOURCES) " end";
"""
_MODULE = """
#include <Python.h>
"""
_MODULE += _MARK
_MODULE += """
static PyObject *build_info(PyObject *self, PyObject *none) {
  return Py_BuildValue("{s:s}", "compiler", "stub");
}
static PyMethodDef methods[] = {{"build_info", build_info, METH_NOARGS, 0}, {0, 0, 0, 0}};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", 0, -1, methods, 0, 0, 0, 0};
extern "C" __attribute__((visibility("default"))) PyObject *PyInit__C(void) {
  return PyModule_Create(&definition);
}
"""

# Takes the place of the process that runs PyTorch's helper; notes each run in the file COMPILED.
CHILD = f"""
import json, os, pathlib, subprocess, sys, sysconfig
contents = dict(_C={_MODULE!r}, libfsdino_ops={_MARK!r})
for options in json.loads(sys.argv[1]):
    if options["with_cuda"]:
        sys.exit("error: the stub has no kernels for GPUs")
    name, place = options["name"], pathlib.Path(options["build_directory"])
    (place / "stub.cpp").write_text(contents[name])
    own = [flag for flag in options["extra_cflags"] if flag.startswith("-DFSDINO_")]
    command = [os.environ.get("CXX", "c++"), "-shared", "-fPIC", "-undefined", "dynamic_lookup"]
    command = command if sys.platform == "darwin" else command[:3]
    command += [*own, "-I" + sysconfig.get_path("include"), "stub.cpp", "-o", name + ".so"]
    subprocess.run(command, check=True, cwd=place)
    steps = len(options["sources"]) + 1
    print(f"[{{steps}}/{{steps}}] linked")
with open(os.environ["COMPILED"], "a") as file:
    file.write("x")
print("fsdino-built", json.dumps(dict(compiler="stub")))
"""


def use(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """An empty cache in `folder`, the stub to fill it, and a process that has loaded nothing."""
    monkeypatch.setenv("FSDINO_CACHE", str(folder / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "own"))
    monkeypatch.setenv("COMPILED", str(folder / "compiled"))
    monkeypatch.delenv("FSDINO_CXXFLAGS", raising=False)
    monkeypatch.setattr(build, "_CHILD", CHILD)
    monkeypatch.setattr(build, "cuda", lambda: "the stub has none")  # whatever GPU is here
    monkeypatch.setattr(native, "_state", native._State())
    monkeypatch.setattr(native, "_registered_by_another", lambda kernels: False)  # it has no ops
    package = folder / "package"
    package.mkdir()
    monkeypatch.setattr(native, "PACKAGE", package)


def without_compiler(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """A PATH with nothing on it."""
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(folder))


def times_compiled() -> int:
    """How often the stub has been compiled."""
    log = Path(os.environ["COMPILED"])
    return len(log.read_text()) if log.exists() else 0
