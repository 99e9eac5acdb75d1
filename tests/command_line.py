"""Shared by the tests of commands: a working folder, arguments, and what is said on stderr.

A plugin of every test session, so that heavy modules are imported where they are used.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

import fsdino
from fsdino import cli

if TYPE_CHECKING:
    from fsdino.models.fsdino import FSDINO


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models with different weights, and support files made by each."""
    import tiny_sam
    from tiny_models import box_mask, picture, tiny_model

    folder = tmp_path_factory.mktemp("models")
    tiny_sam.write(folder).rename(folder / "sam.pth")
    for name, seed in (("model", 0), ("other", 1)):
        model = tiny_model(seed)
        model.save_pretrained(folder / name)
        support = model.encode_support([picture(50, 60, 1)], [box_mask(50, 60)])
        support.save(folder / f"{name}.safetensors")
    return folder


@pytest.fixture
def workplace(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with models, a support and ten queries, as working folder."""
    monkeypatch.chdir(tmp_path)
    furnish(tmp_path, models)
    return tmp_path


def furnish(folder: Path, models: Path) -> None:
    """Put models, a support and ten queries into a folder."""
    from tiny_models import box_mask, picture

    for link in ("model", "other", "model.safetensors", "other.safetensors", "sam.pth"):
        (folder / link).symlink_to(models / link)
    Image.fromarray(picture(50, 60, 1)).save(folder / "a.png")
    Image.fromarray(box_mask(50, 60)).save(folder / "mask.png")
    Image.fromarray(picture(50, 60, 2)).save(folder / "b.png")
    (folder / "queries").mkdir()
    for i in range(10):
        Image.fromarray(picture(40, 50 + i, 10 + i)).save(folder / f"queries/{i}.png")


@pytest.fixture
def mini(monkeypatch: pytest.MonkeyPatch) -> None:
    """A workload that takes a moment."""
    from fsdino.bench import workloads

    small = workloads.Workload(
        "mini", batch=1, layers=2, grid=7, channels=16, block_channels=(8, 16)
    )
    monkeypatch.setitem(workloads.WORKLOADS, "mini", small)


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An extension that compiles in a moment, in an empty cache."""
    import stub_extension

    (tmp_path / "stub").mkdir()
    stub_extension.use(monkeypatch, tmp_path / "stub")


def segment(*arguments: str, support: tuple[str, ...] = ("a.png", "mask.png")) -> list[str]:
    found = ["segment", "--support", *support, "--model", "model", "--device", "cpu"]
    if "--query" not in arguments:
        found += ["--query", "queries"]
    return [*found, "--out", "out", *arguments]


def evaluate(*arguments: str) -> list[str]:
    return ["evaluate", "model", "--device", "cpu", "--workers", "0", *arguments]


def distill(*arguments: str) -> list[str]:
    found = ["distill", "--model", "model", "--device", "cpu", "--workers", "0", "--out", "out"]
    if "--images" not in arguments:
        found += ["--images", "queries", "--held-out", "0.2"]
    if "--teacher-checkpoint" not in arguments:
        found += ["--teacher-checkpoint", "sam.pth"]
    return [*found, "--batch-size", "4", "--image-sizes", "28", "70", "--epochs", "1", *arguments]


def visible_and_hidden(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one error line; anything but log lines beside it is a failure."""
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("fsdino: ") for line in lines), lines
    errors = [line for line in lines if line.startswith(("fsdino: error:", "fsdino: inter"))]
    assert len(errors) == 1, lines
    assert lines[-1] == errors[0]
    return errors[0]


# Bad input: what is prepared, the arguments, the exit code, and what the error must name.
Prepare = Callable[[pytest.MonkeyPatch], object]
BadInput = tuple[Prepare, list[str], int, list[str]]


@pytest.fixture
def assert_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], workplace: Path
) -> Callable[[BadInput], None]:
    """A check of one line that names the thing and the remedy, the exit code, and no new file."""

    def check(case: BadInput) -> None:
        prepare, arguments, code, words = case
        prepare(monkeypatch)
        before = set(visible_and_hidden(workplace))
        assert cli.main(arguments) == code
        line = error_line(capsys)
        for word in words:
            assert word in line
        assert set(visible_and_hidden(workplace)) == before

    return check


def command(*arguments: str, code: str = "") -> list[str]:
    """A fresh interpreter that runs some code and then the command."""
    main = f"import sys; {code}\nfrom fsdino.cli import main; sys.exit(main())"
    return [sys.executable, "-c", main, *arguments]


def environment() -> dict[str, str]:
    root = str(Path(fsdino.__file__).parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def nothing(patch: pytest.MonkeyPatch) -> None:
    pass


def offline(patch: pytest.MonkeyPatch) -> None:
    patch.setenv("HF_HUB_OFFLINE", "1")
    patch.setenv("HF_HUB_CACHE", "cache")


@pytest.fixture
def small_dinov2(monkeypatch: pytest.MonkeyPatch) -> FSDINO:
    """The model that dinov2-s is, on an encoder of four blocks, whose weights are dinov2.pth."""
    import torch

    from fsdino.models import zoo
    from fsdino.models.config import ModelConfig
    from tiny_models import SMALL, tiny_model

    encoder = tiny_model(5).encoder
    torch.save(encoder.vit.state_dict(), "dinov2.pth")
    real = ModelConfig.__post_init__

    def shrunk(self: ModelConfig) -> None:
        if self.encoder == "vit_small_patch14_dinov2.lvd142m":
            object.__setattr__(self, "encoder_args", SMALL)
        real(self)

    monkeypatch.setattr(ModelConfig, "__post_init__", shrunk)
    config = ModelConfig("vit_small_patch14_dinov2.lvd142m", variant="training_free", image_size=70)
    return zoo.assemble(config, encoder).eval()
