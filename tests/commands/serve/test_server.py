"""The page as a server: it answers, and its end leaves neither files nor threads."""

from __future__ import annotations

import base64
import os
import re
import signal
import subprocess
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from command_line import command, environment
from fsdino.commands.serve import server
from fsdino.commands.serve.server import Settings

ROOT = Path(__file__).resolve().parents[3]


def get(address: str, **headers: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers)) as answer:
            return answer.status, answer.read().decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode("utf-8", "replace")


def test_it_serves_and_leaves_nothing(engine, tmp_path, monkeypatch):
    """Page, shipped photographs, a password; nothing to guess gives anything."""
    monkeypatch.setattr(server.tempfile, "tempdir", str(tmp_path))
    threads = threading.active_count()
    listening = server.listen("127.0.0.1", 0)
    with server.serving(engine, Settings(password="secret"), listening) as address:
        assert address.startswith("http://127.0.0.1:")
        assert get(address)[0] == 401
        code = base64.b64encode(b":secret").decode()
        signed = {"authorization": f"Basic {code}"}
        status, text = get(address, **signed)
        assert status == 200 and "fsdino" in text and "fonts.googleapis" not in text
        assert get(f"{address}fsdino/sample/teacup", **signed)[0] == 200
        for path in ("picture/x", "original/x/0", "overlay/x/0?threshold=0.5", "support/x/y",
                     "archive/x?threshold=0.5", "sample/..%2fsamples.json"):  # fmt: skip
            assert get(f"{address}fsdino/{path}", **signed)[0] == 404
        [folder] = tmp_path.iterdir()
        assert folder.stat().st_mode & 0o777 == 0o700
        files = "gradio_api/file=" + str(folder / "visits")
        assert get(address + files, **signed)[0] in (403, 404)
        assert get(f"{address}gradio_api/file=/etc/passwd", **signed)[0] in (403, 404)
    assert not [*tmp_path.iterdir()]
    assert threading.active_count() <= threads + 1  # a worker of asyncio's pool may go on
    assert "GRADIO_TEMP_DIR" not in os.environ


def test_old_uploads_go(tmp_path):
    """Those that came lately stay, and so does the folder itself."""
    for name, age in (("old", 500), ("new", 0)):
        (tmp_path / name).mkdir()
        file = tmp_path / name / "a.png"
        file.touch()
        os.utime(file, (file.stat().st_mtime - age,) * 2)
    server.remove_old(tmp_path, 100)
    assert [*tmp_path.rglob("*")] == [tmp_path / "new", tmp_path / "new" / "a.png"]
    os.utime(tmp_path / "new" / "a.png", (0, 0))
    server.remove_old(tmp_path, 100)
    assert tmp_path.is_dir() and not [*tmp_path.iterdir()]


@pytest.mark.slow
def test_it_ends_on_request(tmp_path):
    """Ctrl-C and a container's stop end it with exit code 0, and its files are gone."""
    # A shell's background jobs, such as this test may be one of, begin with SIGINT ignored.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    arguments = command("serve", "--port", "0", "--device", "cpu", code=code)
    found = {**environment(), "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    pipe = subprocess.PIPE
    started = {
        sent: subprocess.Popen(arguments, stdout=pipe, stderr=pipe, text=True, env=found)
        for sent in (signal.SIGINT, signal.SIGTERM)
    }
    for process in started.values():
        line = process.stdout.readline()
        assert "fsdino is at http://127.0.0.1:" in line, process.stderr.read()
    assert len([*tmp_path.glob("fsdino-page-*")]) == 2
    for sent, process in started.items():
        process.send_signal(sent)
        rest, errors = process.communicate(timeout=60)
        assert process.returncode == 0 and "closed" in rest and not errors
    assert not [*tmp_path.glob("fsdino-page-*")]


def test_the_documented_proxy_leaves_the_limits_to_the_page():
    """One drop of photographs is one request; nginx keeps no copy before a password is checked."""
    text = (ROOT / "docs" / "page.md").read_text(encoding="utf-8")
    [block] = re.findall(r"```nginx\n(.*?)```", text, re.DOTALL)
    said = dict(re.findall(r"^ *([a-z_]+) +([^;]+);", block, re.MULTILINE))
    assert said["proxy_buffering"] == said["proxy_request_buffering"] == "off"
    number, unit = re.fullmatch(r"(\d+)([kmg]?)", said["client_max_body_size"]).groups()
    most = int(number) * 1024 ** " kmg".index(unit or " ")
    settings = Settings()
    assert most == 0 or most >= settings.most_images * settings.most_bytes  # 0: no limit
