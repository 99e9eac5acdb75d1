"""What `fsdino info` knows."""

from __future__ import annotations

import json

import pytest
import torch

import fsdino
import stub_extension
from command_line import nothing, offline
from fsdino import cli, contract
from fsdino.commands import info
from fsdino.ops import backends, measured, native
from fsdino.ops.backends import Backend
from tiny_models import tiny_model


def test_choices_say_what_runs_and_why_not(monkeypatch):
    """The first backend that can is the one that runs, as `auto` chooses; others say why not."""

    def only_double(op: str, device: torch.device, dtype: torch.dtype) -> str | None:
        return None if dtype == torch.float64 else f"{op} is for float64"

    for name, priority in (("picky", 90), ("spare", -1)):
        why = only_double if name == "picky" else lambda *_: None
        monkeypatch.setitem(backends._registry, name, Backend(name, priority, "unused", why))
    cpu = torch.device("cpu")
    for dtype in (torch.float32, torch.float64):
        for op, row in info.choices(cpu, dtype).items():
            chosen = backends.select(op, torch.zeros(1, dtype=dtype))
            assert [name for name, text in row.items() if text == "runs"] == [chosen]
            assert row["spare"] == "could run"
    assert info.choices(cpu, torch.float32)["correlation4d"]["picky"] == (
        "correlation4d is for float64"
    )


def test_collect_is_plain_data():
    """Everything survives JSON; each op of each device and dtype is there."""
    found = json.loads(json.dumps(info.collect()))
    assert found["environment"]["fsdino"] == fsdino.__version__
    assert found["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert set(found["backends"]) == set(found["devices"]) >= {"cpu"}
    for by_dtype in found["backends"].values():
        assert set(by_dtype) == {"float32", "float16", "bfloat16"}
        assert all(
            set(table) == contract.OPS.keys() | contract.COMPOSED for table in by_dtype.values()
        )


def test_measured_choices_are_shown(monkeypatch, capsys):
    """Those of this machine, with the sizes that a class stands for."""
    here = measured.instruction_set()
    table = {
        ("correlation4d", torch.float32, here): [(8, 16, "eager")],
        ("correlation4d", torch.float32, "of another machine"): [(16, 32, "eager")],
    }
    monkeypatch.setattr(measured, "MEASURED", table)
    assert cli.main(["info"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    line = f"measured on {here}: auto takes eager for correlation4d, float32, 8 to 15 elements"
    assert line in out
    assert "another machine" not in out


def test_the_extension_is_described(monkeypatch, tmp_path):
    """Where it was loaded from and with what it was built; before that, nothing."""
    stub_extension.use(monkeypatch, tmp_path)
    assert info.describe_native() == {"extension": None, "problems": []}
    built = native.build()
    found = json.loads(json.dumps(info.describe_native()))
    assert found["extension"]["path"] == str(built.path)
    assert found["extension"]["build_info"] == {"compiler": "stub"}


def test_missing_packages_are_none(monkeypatch):
    """An optional library that is not there is no error."""
    monkeypatch.setattr(info, "PACKAGES", ("torch", "no-such-package-anywhere"))
    assert info.packages()["no-such-package-anywhere"] is None


def test_models_are_described(tmp_path):
    """Configuration and parameters per part, which add up to the model's."""
    model = tiny_model()
    model.save_pretrained(tmp_path)
    found = info.describe_model(str(tmp_path))
    assert found["fingerprint"] == model.fingerprint()
    assert found["config"]["width"] == model.config.width
    counted = sum(sum(counts.values()) for counts in found["parameters"].values())
    assert counted == sum(parameter.numel() for parameter in model.parameters())
    assert found["parameters"]["encoder"]["trained"] == 0


BAD_INPUT = {
    "DINOv2 to describe without weights": (offline, ["info", "dinov2-b"], 2, ["--weights FILE"]),
    "unknown model of info": (nothing, ["info", "nope"], 2, ["'nope'"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line(case, assert_refused):
    """Each mistake names the thing and the remedy, exits with its code, and leaves no files."""
    assert_refused(BAD_INPUT[case])


def test_info(capsys, monkeypatch, workplace):
    """Ops and backends, and a model's configuration and parts, in 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["info", "model"]) == 0
    out = capsys.readouterr().out
    for op in contract.OPS | contract.COMPOSED:
        lines = [line.split() for line in out.splitlines() if line.split()[:1] == [op]]
        assert lines and all("runs" in line for line in lines)  # one for each table
    assert "cuda: no, it runs on NVIDIA GPUs, not on cpu\n" in out
    assert "correlation_channels" in out
    assert fsdino.load("model").fingerprint() in out
    assert cli.main(["info", "model", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"]["parameters"]["decoder"]["trained"] > 0


def test_info_tells_the_whole_reason(stub, capsys):
    """Which file was found, what it was built for, and what is installed."""
    library = native.PACKAGE / "_C.so"
    library.write_bytes(b"fsdino-extension torch=2.14.0 sources=0 end")
    assert cli.main(["info"]) == 0
    reason = f"{library} was built for torch 2.14.0, you have {torch.__version__}"
    assert f"C++ kernels, not used: {reason}\n" in capsys.readouterr().out
