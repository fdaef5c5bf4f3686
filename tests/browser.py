"""A real headless Chromium for tests, driven by ChromeDriver's own HTTP protocol: two packages, no library."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

_ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
)
_SECONDS = 120
_PACKAGES = "apt-get install chromium chromium-driver"


class Browser:
    """One window. Widths are those of the page."""

    def __init__(self, port: str, profile: str) -> None:
        self._server = f"http://127.0.0.1:{port}"
        options = {"args": [*_ARGUMENTS, f"--user-data-dir={profile}"]}
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        self._session = ""
        self._session = f"/session/{self._call('/session', capabilities={'alwaysMatch': wanted})['sessionId']}"

    def open(self, page: Path, *, width: int = 1280, dark: bool = False, script: bool = True) -> None:
        """Show a file, and forget what was logged before."""
        self.devtools("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.devtools("Emulation.setEmulatedMedia", features=[scheme])
        self.devtools("Emulation.setScriptExecutionDisabled", value=not script)
        self._call("/url", url="about:blank")
        self._logged("browser"), self._logged("performance")
        self._call("/url", url=page.as_uri())

    def run(self, script: str, *arguments: object) -> Any:
        """Return what the body of a function returns in the page."""
        return self._call("/execute/sync", script=script, args=arguments)

    def keys(self, text: str) -> None:
        """Type into what has the focus; \\ue004 is Tab, \\ue00d is Space, \\ue007 is Enter."""
        pressed = [{"type": kind, "value": key} for key in text for kind in ("keyDown", "keyUp")]
        self._call("/actions", actions=[{"type": "key", "id": "keyboard", "actions": pressed}])

    def point(self, selector: str, number: int = 0) -> None:
        """Move the pointer over the middle of an element."""
        box = self.run(
            "const e = document.querySelectorAll(arguments[0])[arguments[1]]; e.scrollIntoView({block: 'center', "
            "behavior: 'instant'}); const b = e.getBoundingClientRect();"
            "return [b.x + b.width / 2, b.y + b.height / 2].map(Math.round)",
            selector,
            number,
        )
        move = {"type": "pointerMove", "duration": 0, "x": box[0], "y": box[1]}
        self._call("/actions", actions=[{"type": "pointer", "id": "mouse", "actions": [move]}])

    def screenshot(self) -> bytes:
        """The page as a PNG, down to its end or 6,000 pixels."""
        width, height = self.run("const e = document.documentElement; return [e.clientWidth, e.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": width, "height": min(height, 6000), "scale": 1}
        shot = self.devtools("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        return base64.b64decode(shot["data"])

    def messages(self) -> list[str]:
        """What the page has written to the console since it was opened, violations of its policy included."""
        return [entry["message"] for entry in self._logged("browser")]

    def requests(self) -> list[str]:
        """Addresses that were asked for since the page was opened."""
        events = (json.loads(entry["message"])["message"] for entry in self._logged("performance"))
        return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]

    def printed(self) -> bytes:
        """The page as a PDF."""
        return base64.b64decode(self._call("/print", background=True))

    def devtools(self, command: str, **parameters: object) -> Any:
        return self._call("/goog/cdp/execute", cmd=command, params=parameters)

    def close(self) -> None:
        with urlopen(Request(self._server + self._session, method="DELETE"), timeout=_SECONDS):
            pass

    def _logged(self, kind: str) -> list[dict[str, Any]]:
        return self._call("/se/log", type=kind)

    def _call(self, path: str, **body: object) -> Any:
        data = json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        with urlopen(Request(self._server + self._session + path, data, headers), timeout=_SECONDS) as answer:
            return json.load(answer)["value"]


@contextmanager
def started() -> Iterator[Browser]:
    """A browser; without one the test is skipped, or fails where SHARDC_BROWSER says that there has to be one."""
    driver, chromium = shutil.which("chromedriver"), shutil.which("chromium") or shutil.which("google-chrome")
    if not (driver and chromium):
        missing = f"no {'chromium' if driver else 'chromedriver'} on this machine: {_PACKAGES}"
        if os.environ.get("SHARDC_BROWSER") == "required":
            pytest.fail(missing)
        pytest.skip(missing)
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
        subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, text=True) as process,
    ):
        try:
            lines = iter(process.stdout.readline, "")
            port = next(found[1] for line in lines if (found := re.search(r"successfully on port (\d+)", line)))
            browser = Browser(port, profile)
            try:
                yield browser
            finally:
                browser.close()
        finally:
            process.terminate()
