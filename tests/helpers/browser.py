"""A real browser for tests: headless Chromium, driven by chromedriver in the W3C WebDriver protocol over HTTP."""

import base64
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
MISSING = "no Chromium with chromedriver is installed (Debian: chromium, chromium-driver)"
INSTALLED = CHROMIUM is not None and DRIVER is not None

_ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--use-gl=angle",
    "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--force-device-scale-factor=1",
)  # fmt: skip

FIND = """
const found = [];
const visit = (root) => {
  for (const element of root.querySelectorAll('*')) {
    if (element.matches(arguments[0])) found.push(element);
    if (element.shadowRoot) visit(element.shadowRoot);
    if (element.contentDocument) visit(element.contentDocument);
  }
};
visit(document);
"""
"""Collects in `found` what a CSS selector matches anywhere, also inside of web components and frames."""


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def wait_for(condition, what, seconds=60):
    """What `condition` returns as soon as it is true."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.25)


class Browser:
    """A window of a fresh browser. To be used in a with statement.

    Args:
        folder: for the profile and the driver's log.
        width, height: of the window, in pixels.
    """

    FIND = FIND

    def __init__(self, folder, width=1400, height=1000):
        self._folder, self._size = Path(folder), (width, height)

    def __enter__(self):
        port = free_port()
        self._base = f"http://localhost:{port}"
        self._driver = subprocess.Popen(
            [DRIVER, f"--port={port}", f"--log-path={self._folder / 'driver.log'}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": str(self._folder)},
        )
        try:
            wait_for(self._ready, "chromedriver")
            arguments = [
                *_ARGUMENTS,
                f"--user-data-dir={self._folder / 'profile'}",
                f"--window-size={self._size[0]},{self._size[1]}",
            ]
            options = {"binary": CHROMIUM, "args": arguments}
            answer = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}})
            self._session = f"/session/{answer['sessionId']}"
        except BaseException:
            self._driver.kill()
            raise
        return self

    def __exit__(self, *exception):
        try:
            self._ask("DELETE", self._session)
        finally:
            self._driver.terminate()
            self._driver.wait(10)

    def _ready(self):
        try:
            return self._ask("GET", "/status")["ready"]
        except OSError:
            return False

    def _ask(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._base + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(json.load(error)["value"]["message"]) from None

    def open(self, address):
        self._ask("POST", f"{self._session}/url", {"url": address})

    def run(self, script, *arguments):
        """What a piece of JavaScript returns."""
        return self._ask("POST", f"{self._session}/execute/sync", {"script": script, "args": arguments})

    def count(self, selector):
        """How many elements a CSS selector matches, also inside of web components and frames."""
        return self.run(FIND + "return found.length", selector)

    def texts(self, selector):
        """The visible text of each of them."""
        return self.run(FIND + "return found.map((element) => element.innerText || element.textContent)", selector)

    def screenshot(self, file):
        Path(file).write_bytes(base64.b64decode(self._ask("GET", f"{self._session}/screenshot")))
