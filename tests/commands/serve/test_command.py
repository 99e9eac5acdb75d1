"""`fsdino serve` refuses what would let others in unasked, before anything is loaded."""

from __future__ import annotations

import socket

import pytest

from fsdino import cli
from fsdino.commands.serve import command


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0 lets other machines in: pass --password"),
        (["--host", "::"], "pass --password"),
        (["--password", " "], "--password is empty"),
        (["--password", "a", "--no-password"], "exclude each other"),
        (["--port", "70000"], "--port must be between 0 and 65535"),
        (["--max-images", "0"], "--max-images must be between 1 and 1000"),
        (["--max-size", "5000"], "--max-size must be between 1 and 1000"),
        (["--model", "nothing"], "unknown model"),
        (["--host", "no.such.host.invalid"], "pass --password"),
        (["--host", "no.such.host.invalid", "--no-password"], "--host no.such.host.invalid"),
    ],
)
def test_refusals(arguments, words, capsys):
    assert cli.main(["serve", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_port_in_use(capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert cli.main(["serve", "--port", str(port)]) == 2
    assert f"--port {port} is in use on 127.0.0.1: pass another one" in capsys.readouterr().err


def test_the_password_of_the_environment(monkeypatch, capsys):
    """It counts as --password does."""
    monkeypatch.setenv(command.PASSWORD_VARIABLE, " ")
    assert cli.main(["serve"]) == 2
    assert "is empty" in capsys.readouterr().err


def test_without_gradio(monkeypatch, capsys):
    """The extra is named."""
    find = command.importlib.util.find_spec
    monkeypatch.setattr(
        command.importlib.util, "find_spec", lambda name: None if name == "gradio" else find(name)
    )
    assert cli.main(["serve"]) == 1
    assert 'pip install "fsdino[page]"' in capsys.readouterr().err
