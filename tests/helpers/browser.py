"""A headless Chromium, driven by Selenium. A test module that imports this is skipped where either is missing."""

import json
import os
import shutil
import time

import pytest

pytest.importorskip("selenium", reason="Selenium is not installed (requirements-dev.txt)")

from selenium import webdriver
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.chrome.service import Service

__all__ = ["Browser", "Keys", "wait_for"]

_CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_DRIVER = shutil.which("chromedriver")
if _CHROMIUM is None or _DRIVER is None:
    pytest.skip("no Chromium with chromedriver (Debian: chromium, chromium-driver)", allow_module_level=True)

_ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--disable-background-networking", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
)  # fmt: skip
_FIND = """
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


def wait_for(condition, what, seconds=60):
    """Wait until `condition` returns a true value, and return it."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.1)


class Browser:
    """A window of a fresh browser, a context manager.

    Attributes:
        driver: Selenium's.
    """

    def __init__(self, folder, width=1400, height=1000):
        options = webdriver.ChromeOptions()
        options.binary_location = _CHROMIUM
        for argument in (*_ARGUMENTS, f"--user-data-dir={folder / 'profile'}", f"--window-size={width},{height}"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        environment = {**os.environ, "HOME": str(folder)}
        self.driver = webdriver.Chrome(options, Service(_DRIVER, env=environment))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.driver.quit()

    def open(self, address):
        """Load or reload a page, and clear the browser's logs."""
        self.driver.get("about:blank")
        self.complaints(), self.requests()
        self.driver.get(address)

    def open_as(self, address, width, height, dark=False):
        """Load a page on a screen of this size; one as narrow as a phone's has touch in place of a mouse."""
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600})  # fmt: skip
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {
            "features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]})  # fmt: skip
        self.open(address)

    def complaints(self):
        """Console errors since the last call, exceptions and failed requests included."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def requests(self):
        """Addresses requested since the last call, without data URIs."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        addresses = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        return [address for address in addresses if not address.startswith("data:")]

    def evaluate(self, expression):
        """The value of a JavaScript expression, as plain data."""
        return self.driver.execute_script(f"return {expression}")

    def found(self, selector, expression):
        """The value of an expression of `found`, the elements of a CSS selector, in web components and frames too."""
        return self.driver.execute_script(f"{_FIND} return {expression}", selector)

    def texts(self, selector):
        """The visible text of each element that a CSS selector matches."""
        return self.found(selector, "found.map((element) => element.innerText || element.textContent)")

    def press(self, key):
        """Press one of Selenium's Keys."""
        ActionChains(self.driver).send_keys(key).perform()

    def point(self, x, y, tap=False):
        """Move the mouse to a point of the viewport, or tap there."""
        if tap:
            for kind, points in (("touchStart", [{"x": x, "y": y}]), ("touchEnd", [])):
                self.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        else:
            self.driver.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": x, "y": y})
