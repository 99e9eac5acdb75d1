"""Files of the Hugging Face hub: the library's own cache, and downloads that fail at once."""

from __future__ import annotations

import hashlib
import io
import logging
import re
import runpy
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest
from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

import fake_hub
from fsdino.models import hub
from fsdino.models.hub import HubFile, UnavailableError

FILE = HubFile("timm/network.tag")
CONTENT = bytes(range(256)) * 4096  # a megabyte
SHORT = 0.3  # seconds


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and nothing of the caller's environment."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tmp_path / "cache"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[fake_hub.FakeHub]:
    with fake_hub.serve(CONTENT) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        yield running


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"XDG_CACHE_HOME": "/x"},
        {"XDG_CACHE_HOME": "/x", "HF_HOME": "~/h"},
        {"HF_HOME": "$XDG_CACHE_HOME/h", "XDG_CACHE_HOME": "/x"},
        {"HF_HOME": "/h", "HUGGINGFACE_HUB_CACHE": "/old"},
        {"HF_HOME": "/h", "HUGGINGFACE_HUB_CACHE": "/old", "HF_HUB_CACHE": "~/new"},
    ],
    ids=" ".join,
)
def test_the_cache_is_where_the_library_has_it(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the variables that the library reads, which is the one that others fill it with."""
    for name in ("XDG_CACHE_HOME", "HF_HOME", "HUGGINGFACE_HUB_CACHE", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    expected = Path(runpy.run_path(constants.__file__)["HF_HUB_CACHE"])
    assert hub._folder(FILE) == expected / "models--timm--network.tag"


def test_what_the_library_has_downloaded_is_found(
    server: fake_hub.FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a branch's name and by its commit; without a request, and offline."""
    assert hub.cached(FILE) is None
    path = hf_hub_download(FILE.repository, FILE.name, cache_dir=cache, endpoint=server.endpoint)
    asked = list(server.asked)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for revision in (None, "main", fake_hub.COMMIT):
        file = HubFile(FILE.repository, FILE.name, revision)
        assert hub.cached(file) == Path(path)
        assert hub.fetch(file) == Path(path)
        hub.check(file)
    assert hub.cached(HubFile(FILE.repository, FILE.name, "v2")) is None
    assert hub.cached(HubFile(FILE.repository, "other.bin")) is None
    assert hub.cached(HubFile("timm/other")) is None
    assert server.asked == asked


def test_what_is_downloaded_is_found_by_the_library(server: fake_hub.FakeHub, cache: Path) -> None:
    """One cache for everybody; once downloaded, nothing is asked again."""
    path = hub.fetch(FILE)
    assert path.read_bytes() == CONTENT
    assert try_to_load_from_cache(FILE.repository, FILE.name, cache_dir=cache) == str(path)
    found = hf_hub_download(FILE.repository, FILE.name, cache_dir=cache, local_files_only=True)
    assert Path(found) == path
    assert server.asked == [("HEAD", None), ("GET", None)]
    assert hub.fetch(FILE) == path
    assert len(server.asked) == 2
    # Every file of the cache is one that the library itself would leave there.
    blob = hashlib.sha256(CONTENT).hexdigest()
    assert {str(p.relative_to(cache)) for p in cache.rglob("*") if p.is_file()} == {
        f"models--timm--network.tag/blobs/{blob}",
        f"models--timm--network.tag/snapshots/{fake_hub.COMMIT}/model.safetensors",
        "models--timm--network.tag/refs/main",
    }


def test_progress_is_shown(
    server: fake_hub.FakeHub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A bar on a terminal; elsewhere lines in the log, after the one that says what comes."""
    with caplog.at_level(logging.INFO, "fsdino"):
        hub.fetch(FILE)
    first, *_, last = [record.getMessage() for record in caplog.records]
    assert first == f"downloading {FILE.address} (1 MB) to the cache"
    assert re.fullmatch(r"network\.tag/model\.safetensors: 1/1 MB, [\d.]+ (MB/s|s each)", last)
    caplog.clear()
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr("sys.stderr", screen)
    with caplog.at_level(logging.INFO, "fsdino"):
        hub.fetch(HubFile("timm/other"))
    assert "other/model.safetensors" in screen.getvalue() and "1/1" in screen.getvalue()
    assert len(caplog.records) == 1


def test_an_interrupted_download_goes_on(
    server: fake_hub.FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that breaks is one error that says what is kept; the next call continues."""
    monkeypatch.setattr(hub, "_CHUNK", 100_000)
    server.cut = 400_000
    with pytest.raises(UnavailableError, match=r"stopped, \w+: .*; 0\.4 MB are kept") as caught:
        hub.fetch(FILE)
    assert str(caught.value).isprintable()
    assert hub.cached(FILE) is None
    server.cut = None
    assert hub.fetch(FILE).read_bytes() == CONTENT
    assert server.asked[-1] == ("GET", "bytes=400000-")


def test_ctrl_c_keeps_what_is_there(
    server: fake_hub.FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interruption says so."""

    def interrupted(_url: str, stream: BinaryIO, *_rest: object) -> None:
        stream.write(CONTENT[:300_000])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(hub, "_receive", interrupted)
        with pytest.raises(KeyboardInterrupt, match=r"0\.3 MB are kept; run the same command to"):
            hub.fetch(FILE)
    assert hub.fetch(FILE).read_bytes() == CONTENT
    assert server.asked[-1] == ("GET", "bytes=300000-")


def test_a_server_that_sends_all_again(server: fake_hub.FakeHub, cache: Path) -> None:
    """One that knows no ranges: what is there is not written twice."""
    blobs = cache / "models--timm--network.tag" / "blobs"
    blobs.mkdir(parents=True)
    name = hashlib.sha256(CONTENT).hexdigest()
    (blobs / f"{name}.incomplete").write_bytes(CONTENT[:1000])
    server.ranges = False
    assert hub.fetch(FILE).read_bytes() == CONTENT
    assert server.asked[-1] == ("GET", "bytes=1000-")


def test_a_download_that_stalls(
    server: fake_hub.FakeHub,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A connection that falls silent after some of the file: one error, no further attempt."""
    monkeypatch.setattr(hub, "_CHUNK", 100_000)
    monkeypatch.setattr(hub, "STALL", SHORT)
    server.cut, server.hangs = 250_000, True
    start = time.monotonic()
    with pytest.raises(UnavailableError, match=r"stopped, ReadTimeout: .*; 0\.2 MB are kept"):
        hub.fetch(FILE)
    assert time.monotonic() - start < 2
    assert [method for method, _ in server.asked] == ["HEAD", "GET"]
    assert all(record.levelno < logging.WARNING for record in caplog.records)


@pytest.mark.parametrize("size", [1000, len(CONTENT), len(CONTENT) + 1])
def test_a_damaged_beginning_is_not_kept(size: int, server: fake_hub.FakeHub, cache: Path) -> None:
    """The hash that the hub announces decides; what is too long is not even continued."""
    blobs = cache / "models--timm--network.tag" / "blobs"
    blobs.mkdir(parents=True)
    name = hashlib.sha256(CONTENT).hexdigest()
    (blobs / f"{name}.incomplete").write_bytes(b"\1" * size)
    if size <= len(CONTENT):
        with pytest.raises(UnavailableError, match="damaged; the same call fetches it again"):
            hub.fetch(FILE)
        assert list(blobs.iterdir()) == []
    assert hub.fetch(FILE).read_bytes() == CONTENT


def test_offline_asks_nobody(server: fake_hub.FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the user forbids the network: at once."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "true")
            for call in (hub.fetch, hub.check, hub.reach):
                with pytest.raises(UnavailableError, match="HF_HUB_OFFLINE is set"):
                    call(FILE)
    assert server.asked == []


def test_a_name_that_is_not_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    """As without any network: one attempt, no pause."""
    attempts = []

    def unknown(*arguments: object, **_options: object) -> None:
        attempts.append(arguments[0])
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    start = time.monotonic()
    with pytest.raises(UnavailableError, match=r"^hub\.invalid: ConnectError: .*not known"):
        hub.fetch(FILE)
    assert time.monotonic() - start < 2
    assert attempts


@pytest.mark.parametrize("stage", ["answer", "name"])
def test_packets_that_vanish(
    stage: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """No answer, be it of the hub or of the name server: the deadline ends it, without a word."""
    released = threading.Event()

    def unanswered(*_arguments: object, **_options: object) -> None:
        released.wait(10)
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    with fake_hub.silence() as address, caplog.at_level(logging.INFO):
        monkeypatch.setenv("HF_ENDPOINT", address)
        if stage == "name":
            monkeypatch.setattr(socket, "getaddrinfo", unanswered)
        start = time.monotonic()
        with pytest.raises(UnavailableError, match=r"^127\.0\.0\.1(: \w+| does not answer)"):
            hub.fetch(FILE, deadline=SHORT)
        elapsed = time.monotonic() - start
        released.set()
    assert elapsed < 2
    assert capfd.readouterr().err == ""
    assert caplog.records == []
    assert hub.DEADLINE <= 10  # and that of a user leaves time to start and to say so: 15 in all


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"status": 404}, "404"),
        ({"status": 503}, "503"),
        ({"without": ("X-Repo-Commit",)}, "does not answer as the hub does"),
        ({"without": ("ETag",)}, "does not answer as the hub does"),
    ],
)
def test_answers_that_are_not_the_file(
    changes: dict[str, object],
    words: str,
    server: fake_hub.FakeHub,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One line, one request, and nothing is written."""
    for name, value in changes.items():
        setattr(server, name, value)
    with pytest.raises(UnavailableError, match=words) as caught:
        hub.fetch(FILE)
    assert str(caught.value).isprintable()
    assert [method for method, _ in server.asked] == ["HEAD"]
    assert not hub._folder(FILE).exists()
