"""The page in a real browser: what a visitor does, from the first click to the archive."""

from __future__ import annotations

import contextlib
import json
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

import clip_files
import fsdino
from fsdino.commands.serve import server, sessions
from fsdino.commands.serve.server import Settings

with contextlib.suppress(ImportError):  # then `browser` skips
    from selenium import webdriver
    from selenium.common.exceptions import TimeoutException
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

pytestmark = pytest.mark.slow

_SECONDS = 60  # that anything may take on a busy machine
_OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--window-size=1280,900",
)  # fmt: skip


class Visitor:
    """A browser at the page.

    Attributes:
        driver: selenium's.
        address: of the page.
        downloads: folder of downloads.
    """

    def __init__(self, driver: Any, address: str, downloads: Path) -> None:
        self.driver, self.address, self.downloads = driver, address, downloads

    def open(self) -> None:
        self.driver.get(self.address)
        self.until(lambda: self.all(".fs-try img") and self.all("#photo input[type=file]"))

    def until(self, condition: Callable[[], Any]) -> Any:
        try:
            return WebDriverWait(self.driver, _SECONDS, 0.05).until(lambda _: condition())
        except TimeoutException as error:
            raise AssertionError(f"the page says:\n{self.text('body')}") from error

    def all(self, css: str) -> list[Any]:
        return self.driver.find_elements("css selector", css)  # type: ignore[no-any-return]

    def one(self, css: str) -> Any:
        return self.until(lambda: self.all(css))[0]

    def text(self, css: str) -> str:
        return self.driver.execute_script(  # one call: the element may be replaced meanwhile
            "const e = document.querySelector(arguments[0]); return e ? e.innerText : ''", css
        )  # type: ignore[no-any-return]

    def upload(self, place: str, *files: Path) -> None:
        self.one(f"#{place} input[type=file]").send_keys("\n".join(map(str, files)))

    def photograph(self, name: str) -> None:
        """Open a shipped photograph by uploading it, and wait until it can be marked."""
        before = self.driver.execute_script(
            "return document.querySelector('.fs-stage img').getAttribute('src')"
        )
        self.upload("photo", fsdino.samples()[name].image_file)
        script = (
            "const i = document.querySelector('.fs-stage img');"
            "return i.getAttribute('src') !== arguments[0] && i.complete && i.clientWidth > 0"
        )
        self.until(lambda: self.driver.execute_script(script, before))

    def pointer(self, action: str, *places: tuple[float, float]) -> None:
        """Click at, or drag along, places as shares of the photograph's width and height."""
        canvas = self.one(".fs-stage canvas")
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
        width, height = canvas.size["width"], canvas.size["height"]
        chain = ActionChains(self.driver, duration=10)
        for number, (x, y) in enumerate(places):
            at = int(width * (x - 0.5)), int(height * (y - 0.5))
            chain.move_to_element_with_offset(canvas, *at)
            if action == "click":
                chain.click()
            elif number == 0:
                chain.click_and_hold()
        (chain if action == "click" else chain.release()).perform()

    def marked(self, before: str = "") -> str:
        """The picture of the mask, once it is another one."""
        script = (
            "const i = document.querySelector('#preview figure img');"
            "return i && i.getAttribute('src') !== arguments[0] && i.naturalWidth > 0"
            " ? i.getAttribute('src') : null"
        )
        return self.until(lambda: self.driver.execute_script(script, before))  # type: ignore[no-any-return]

    def click(self, css: str) -> None:
        element = self.one(css)
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def results(self, count: int) -> None:
        """Wait for the end of a run, and for its overlays."""
        script = (
            "const o = [...document.querySelectorAll('.fs-pair img')];"
            "o.forEach((i) => i.loading = 'eager');"
            "return o.length === 2 * arguments[0] && o.every((i) => i.naturalWidth > 0)"
        )
        self.until(lambda: self.text("#status").startswith("Found"))
        self.until(lambda: self.driver.execute_script(script, count))

    def requests(self) -> set[str]:
        """Addresses that the browser asked for since the last call, but for its own pages."""
        messages = [json.loads(e["message"])["message"] for e in self.driver.get_log("performance")]
        kinds = ("Network.requestWillBeSent", "Network.webSocketCreated")
        asked = [m["params"] for m in messages if m["method"] in kinds]
        found = {p["request"]["url"] if "request" in p else p["url"] for p in asked}
        return {url for url in found if urlsplit(url).scheme in ("http", "https", "ws", "wss")}


@pytest.fixture(scope="module")
def address(engine) -> Iterator[str]:
    settings = Settings(most_images=4, most_bytes=10**6)
    with server.serving(engine, settings, server.listen("127.0.0.1", 0)) as found:
        yield found


@pytest.fixture(scope="module")
def browser(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visitor]:
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if "webdriver" not in globals() or chromium is None or chromedriver is None:
        pytest.skip("chromium, chromedriver or selenium is not installed")
    downloads = tmp_path_factory.mktemp("downloads")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for option in (*_OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(option)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
    try:
        yield Visitor(driver, address, downloads)
    finally:
        driver.quit()


@pytest.fixture
def visitor(browser: Visitor) -> Iterator[Visitor]:
    """A new visit, in which the page asks no other host for anything."""
    browser.requests()
    browser.open()
    yield browser
    asked = browser.requests()
    assert asked and {url for url in asked if not url.startswith(browser.address)} == set()


def huge(path: Path, side: int = 60_000) -> Path:
    """A PNG file of a few bytes that claims to have 3.6 billion pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IEND", b""))
    return path


def test_a_first_visit(visitor):
    """One click on a shipped photograph gives a result, and a second one adds a class."""
    visitor.click(".fs-try")
    visitor.results(1)
    assert "Quality of this example:" in visitor.text("#preview")
    assert "espresso-cup" in visitor.text("#classes")
    assert "teacup.jpg" in visitor.text(".fs-card") and "found" in visitor.text(".fs-scores")
    visitor.driver.execute_script("document.querySelectorAll('.fs-try')[2].click()")
    visitor.until(lambda: len(visitor.all(".fs-card")) == 2)
    visitor.results(2)
    assert visitor.text(".fs-legend").split() == ["espresso-cup", "post-mill"]


def test_paint_find_download(visitor):
    """What is painted is the mask; the archive holds masks, overlays and annotations."""
    visitor.photograph("espresso-cup")
    visitor.pointer("drag", (0.4, 0.2), (0.55, 0.2), (0.6, 0.35), (0.5, 0.5), (0.42, 0.35))
    visitor.marked()
    name = visitor.one("#name textarea, #name input")
    name.clear()
    name.send_keys("cup")
    visitor.click("#keep")
    visitor.until(lambda: "cup" in visitor.text("#classes"))
    samples = fsdino.samples()
    visitor.upload("files", samples["teacup"].image_file, samples["log-mill"].image_file)
    visitor.until(lambda: "2 photographs" in visitor.text("#queries"))
    visitor.click("#find")
    visitor.results(2)

    before = visitor.one(".fs-pair a:last-child img").get_attribute("src")
    slider = visitor.one("#threshold input[type=number]")
    slider.send_keys(Keys.CONTROL + "a")
    slider.send_keys("0.7\t")
    visitor.until(lambda: "threshold=0.7" in visitor.one(".fs-download").get_attribute("href"))
    visitor.results(2)
    after = visitor.one(".fs-pair a:last-child img").get_attribute("src")
    assert before.endswith("threshold=0.5") and after.endswith("threshold=0.7")
    visitor.click(".fs-download")
    [archive] = visitor.until(lambda: [*visitor.downloads.glob("fsdino.zip")])
    with zipfile.ZipFile(archive) as content:
        names = set(content.namelist())
        mask = np.asarray(Image.open(content.open("masks/teacup.png")))
        said = json.loads(content.read("results.json"))
        data = json.loads(content.read("annotations.json"))
    assert {"masks/log-mill.png", "overlays/teacup.jpg", "yolo/teacup.txt"} < names
    assert mask.shape == samples["teacup"].image.size[::-1] and set(np.unique(mask)) <= {0, 255}
    assert said["threshold"] == 0.7 and [c["name"] for c in data["categories"]] == ["cup"]


def test_a_box_by_two_clicks(visitor):
    """It becomes the mask that `mark` finds in it; a click with another tool becomes another."""
    visitor.photograph("espresso-cup")
    visitor.click("[data-tool=box]")
    visitor.pointer("click", (0.27, 0.01), (0.71, 0.74))
    first = visitor.marked()
    share = float(visitor.text("#preview figcaption").split()[1])
    truth = 100 * (np.asarray(fsdino.samples()["espresso-cup"].mask) > 0).mean()
    assert truth / 1.5 < share < 1.5 * truth
    visitor.click("[data-tool=click]")
    visitor.pointer("click", (0.45, 0.3))
    visitor.marked(first)
    visitor.click("[data-undo]")
    visitor.until(lambda: "Click on the object" in visitor.text("#preview"))


def test_hostile_files(visitor, tmp_path):
    """Each is refused in words, and what was done before stays."""
    visitor.photograph("espresso-cup")
    source = visitor.one(".fs-stage img").get_attribute("src")
    with zipfile.ZipFile(tmp_path / "archive.png", "w") as archive:
        archive.writestr("a.txt", "a" * 1000)
    (tmp_path / "drawing.png").write_text("<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>")
    hostile = [tmp_path / "archive.png", tmp_path / "drawing.png", huge(tmp_path / "huge.png")]
    for file, words in zip(hostile, ("an archive", "SVG", "exceeds limit"), strict=True):
        visitor.upload("photo", file)
        visitor.until(lambda words=words: words in visitor.text("body"))
    assert visitor.one(".fs-stage img").get_attribute("src") == source
    good = [sample.image_file for sample in fsdino.samples().values()]
    visitor.upload("files", *hostile[:2], *good)
    visitor.until(lambda: "4 photographs" in visitor.text("#queries"))
    said = visitor.text("#queries")
    assert "6 of 10 files left out" in said and "archive.png (an archive)" in said
    assert "at most 4 are searched at a time" in said


def test_a_phone(visitor):
    """No scrolling to the side, and every button can be reached and is large enough to hit."""
    metrics = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    visitor.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        visitor.open()
        visitor.click(".fs-try")
        visitor.results(1)
        width = visitor.driver.execute_script("return document.documentElement.scrollWidth")
        assert width <= 390
        script = """return [...document.querySelectorAll('button, a, input')].map((e) => {
            const r = e.getBoundingClientRect();
            return [e.id || e.innerText, r.left, r.right, r.height];
        }).filter((r) => r[3] > 0)"""
        shown: Sequence[Any] = visitor.driver.execute_script(script)
        assert len(shown) > 15
        assert [row for row in shown if row[1] < 0 or row[2] > 390] == []
        buttons = visitor.driver.execute_script(
            "return ['#keep', '#find', '.fs-download', '[data-tool=box]'].map("
            "(s) => document.querySelector(s).getBoundingClientRect().height)"
        )
        assert min(buttons) >= 34
    finally:
        visitor.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_two_visitors(visitor):
    """Neither sees the other's classes, photographs or results."""
    driver = visitor.driver
    visitor.click(".fs-try")
    visitor.results(1)
    first = driver.current_window_handle
    driver.switch_to.new_window("tab")
    try:
        visitor.open()
        assert "Nothing yet" in visitor.text("#classes") and not visitor.all(".fs-card")
        visitor.click("#shipped")
        visitor.until(lambda: "4 photographs" in visitor.text("#queries"))
    finally:
        driver.close()
        driver.switch_to.window(first)
    visitor.click("#find")
    visitor.until(lambda: len(visitor.all(".fs-card")) == 1)
    assert "1 photograph:" in visitor.text("#queries")


def test_a_video(visitor, tmp_path):
    """The visit's examples are followed, the browser plays the result, and a frame is marked."""
    cup = np.asarray(fsdino.samples()["espresso-cup"].image)
    frames = [np.ascontiguousarray(cup[20:308, 8 * k : 8 * k + 384]) for k in range(4)]
    clip = clip_files.write_clip(tmp_path / "cup.mp4", frames, codec="mpeg4")
    visitor.click(".fs-try")
    visitor.results(1)
    visitor.click("button[role=tab]:not([aria-selected=true])")
    visitor.upload("clip", clip)
    visitor.until(lambda: "384 × 288" in visitor.text("#clip-info"))
    visitor.click("#follow")
    visitor.until(lambda: "4 frames searched" in visitor.text("#film"))
    script = "const v = document.querySelector('video'); return v.error ? -1 : v.readyState"
    visitor.until(lambda: visitor.driver.execute_script(script) >= 2)
    before = visitor.one(".fs-stage img").get_attribute("src")
    visitor.click("#frame")
    visitor.until(lambda: visitor.one(".fs-stage img").is_displayed())
    assert visitor.one(".fs-stage img").get_attribute("src") != before


def test_a_password(engine, browser):
    """A browser that knows it opens the page and gets results; one that does not sees nothing."""
    listening = server.listen("127.0.0.1", 0)
    with server.serving(engine, Settings(password="secret"), listening) as address:
        visitor = Visitor(browser.driver, address, browser.downloads)
        visitor.driver.get(address)
        assert not visitor.all(".fs-try")
        visitor.driver.get(address.replace("http://", "http://me:secret@"))  # as if typed
        visitor.open()
        visitor.click(".fs-try")
        visitor.results(1)


def test_leaving(engine, browser, tmp_path, monkeypatch):
    """The files of a visit go when its page is closed, while the server goes on."""
    monkeypatch.setattr(server.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(server, "_SWEEP", 0.1)
    monkeypatch.setattr(server, "_ALONE", 0.0)
    monkeypatch.setattr(sessions, "_LEFT", 0.5)
    with server.serving(engine, Settings(), server.listen("127.0.0.1", 0)) as address:
        visitor = Visitor(browser.driver, address, browser.downloads)
        visitor.open()
        visitor.photograph("coins")
        visitor.click(".fs-try")
        visitor.results(1)
        [folder] = tmp_path.iterdir()
        files = lambda: [file for file in folder.rglob("*") if file.is_file()]  # noqa: E731
        assert files()
        visitor.driver.get("about:blank")
        visitor.until(lambda: not files())
        visitor.open()
        assert "Nothing yet" in visitor.text("#classes")
