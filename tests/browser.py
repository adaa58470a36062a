"""A real headless browser for tests, and short ways to look at its page.

What is on a page is read by one script a look, so nothing goes stale between finding and reading.
"""

import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeVar

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

NAMES = ("chromium", "chromium-browser", "google-chrome")
MISSING = (
    "this test drives a real browser: install chromium and chromedriver (on Debian `apt-get "
    "install chromium chromium-driver`), or leave it out with `-m 'not browser'`"
)
WAIT_S = 20.0

T = TypeVar("T")

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--disable-dev-shm-usage",
)


class Browser(AbstractContextManager):
    """One browser with one page."""

    def __init__(self) -> None:
        binary = next(filter(None, map(shutil.which, NAMES)), None)
        driver = shutil.which("chromedriver")
        assert binary, MISSING
        assert driver, MISSING
        options = webdriver.ChromeOptions()
        options.binary_location = binary
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        for flag in (*FLAGS, f"--user-data-dir={self._profile.name}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self._driver = webdriver.Chrome(options=options, service=Service(driver))
        self.look(1280)

    def __exit__(self, *_: object) -> None:
        self._driver.quit()
        self._profile.cleanup()

    def look(self, width: int, scheme: str = "light") -> None:
        """Set the window's width and the colour scheme that the user prefers."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self._driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def open(self, url: str) -> None:
        """Load a page from the beginning; a change behind the `#` alone would not load it."""
        self._driver.get("about:blank")
        self._driver.get(url)

    def reload(self) -> None:
        self._driver.refresh()

    def run(self, script: str, *arguments: object) -> object:
        return self._driver.execute_script(script, *arguments)

    def texts(self, css: str) -> list[str]:
        """The texts of all elements that are there."""
        found = self.run(
            "return [...document.querySelectorAll(arguments[0])].map((one) => one.textContent)", css
        )
        assert isinstance(found, list)
        return found

    def classes(self, css: str) -> list[str]:
        """The class attributes of all elements that are there."""
        found = self.run(
            "return [...document.querySelectorAll(arguments[0])]"
            ".map((one) => one.getAttribute('class'))",
            css,
        )
        assert isinstance(found, list)
        return found

    def text(self, css: str) -> str:
        return "\n".join(self.texts(css))

    def element(self, css: str) -> WebElement:
        return self._driver.find_element(By.CSS_SELECTOR, css)

    def click(self, css: str) -> None:
        self.wait_for(css)
        self.element(css).click()

    def type(self, css: str, text: str) -> None:
        self.wait_for(css)
        self.element(css).send_keys(text)

    def press(self, *keys: str) -> None:
        """Press keys wherever the focus is."""
        actions = webdriver.ActionChains(self._driver)
        for key in keys:
            actions.send_keys(key)
        actions.perform()

    def wait(self, look: Callable[[], T]) -> T:
        """Look until there is something to see."""
        deadline_s = time.monotonic() + WAIT_S
        while not (seen := look()):
            assert time.monotonic() < deadline_s, self.text("body")
            time.sleep(0.05)
        return seen

    def wait_for(self, css: str) -> None:
        """Wait until there is such an element."""
        self.wait(lambda: self.run("return !!document.querySelector(arguments[0])", css))

    def wait_text(self, css: str, text: str) -> None:
        """Wait until one of these elements says `text`."""
        self.wait(lambda: any(text in one for one in self.texts(css)))

    def errors(self) -> list[str]:
        """What the console has complained about since it was last asked."""
        entries = self._driver.get_log("browser")
        return [one["message"] for one in entries if one["level"] in ("SEVERE", "WARNING")]
