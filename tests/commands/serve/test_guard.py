"""What the page lets through: hosts, passwords, addresses and sizes."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest

from fsdino.commands.serve import guard
from fsdino.commands.serve.guard import Guard, is_loopback


async def page(scope: Any, receive: Any, send: Any) -> None:
    """Reads the whole request, and answers with its length."""
    size, more = 0, scope["method"] == "POST"
    while more:
        message = await receive()
        assert message["type"] == "http.request"
        size, more = size + len(message["body"]), message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(size).encode()})


def ask(
    path: str = "/",
    *,
    password: str | None = None,
    any_host: bool = False,
    method: str = "GET",
    body: bytes = b"",
    room: int = 10**9,
    **headers: str,
) -> tuple[int, dict[bytes, bytes], bytes]:
    """One request; gives status, headers and body of the answer."""
    sent: list[Any] = []
    headers = {"host": "127.0.0.1:7860", "content-length": str(len(body)), **headers}
    scope = {
        "type": "http", "path": path, "method": method,
        "headers": [(k.encode(), v.encode()) for k, v in headers.items()],
    }  # fmt: skip

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(Guard(page, password, any_host, 100, lambda: room)(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost", "[::1]:80", "LOCALHOST:1"])
def test_this_machine(host):
    assert ask(host=host)[0] == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "10.0.0.1:7860"])
def test_other_names(host):
    """A page elsewhere must not reach a visitor's own server under a name of its own."""
    assert ask(host=host)[0] == 403
    assert ask(host=host, any_host=True)[0] == 200


def test_passwords(monkeypatch):
    """Any user name; a wrong password and none are refused with the question for one."""
    monkeypatch.setattr(guard, "_WRONG", 0)

    def basic(text: str) -> str:
        return "Basic " + base64.b64encode(text.encode()).decode()

    status, headers, _ = ask(password="grün:1")
    assert status == 401 and headers[b"www-authenticate"].startswith(b"Basic")
    assert ask(password="grün:1", authorization=basic("anybody:grün:1"))[0] == 200
    for wrong in (basic("anybody:grün"), basic("grün:1"), "Basic !", "Bearer x", "Basic "):
        assert ask(password="grün:1", authorization=wrong)[0] == 401


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/proxy=http://example.com", "/monitoring", "/docs", "/openapi.json",
        "/gradio_api/info", "/gradio_api/call/x", "/gradio_api/run/x", "/gradio_api/vibe-edit",
        "/gradio_api/deep_link",
    ],
)  # fmt: skip
def test_what_the_page_does_not_need_is_closed(path):
    assert ask(path)[0] == 404 and ask(path, method="POST")[0] == 404


def test_sizes():
    """Of uploads and of calls; more than was said is not read."""
    assert ask(guard.UPLOAD, method="POST", body=b"x" * 100)[2] == b"100"
    assert ask(guard.UPLOAD, method="POST", body=b"x" * 101)[0] == 413
    assert ask(guard.UPLOAD, method="POST", body=b"x" * 100, room=99)[0] == 413
    call = "/gradio_api/queue/join"
    assert ask(call, method="POST", body=b"x" * 5000)[2] == b"5000"
    assert ask(call, method="POST", **{"content-length": str(2**30)})[0] == 413
    assert ask(call, method="POST", **{"content-length": "many"})[0] == 413
    with pytest.raises(AssertionError):  # the page sees that the connection has ended
        ask(guard.UPLOAD, method="POST", body=b"x" * 101, **{"content-length": "1"})


def test_every_answer_forbids_other_hosts():
    for status, headers, _ in (ask(), ask("/docs"), ask(host="evil.example")):
        assert status and b"default-src 'self'" in headers[b"content-security-policy"]
        assert b"http" not in headers[b"content-security-policy"]


@pytest.mark.parametrize(
    ("host", "own"),
    [("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("localhost", True),
     ("0.0.0.0", False), ("::", False), ("192.168.0.1", False), ("localhost.example", False)],
)  # fmt: skip
def test_loopback(host, own):
    assert is_loopback(host) is own
