"""A headless Chromium, spoken to through two pipes (Chrome DevTools Protocol): no driver, no port, no library.

Debian's package will do: apt-get install --no-install-recommends chromium.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CURE = "no Chromium is installed; apt-get install --no-install-recommends chromium"
LONGEST = 60
"""Seconds that an answer may take."""
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-extensions", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-default-apps",
    "--hide-scrollbars", "--remote-debugging-pipe", "--force-color-profile=srgb",
)  # fmt: skip
"""No sandbox: it does not start as root, and what is opened are pages of ours."""


def chromium() -> str | None:
    """The path of an installed Chromium; None on Windows, where no pipe of ours reaches it."""
    return next((path for name in NAMES if os.name == "posix" and (path := shutil.which(name))), None)


@dataclass
class Page:
    """One tab: what it is asked, and what it has said so far."""

    asks: int
    """File descriptor to write to."""
    answers: int
    session: str = ""
    number: int = 0
    rest: bytes = b""
    events: list[dict] = field(default_factory=list)

    def ask(self, method: str, **params: object) -> dict:
        """Send a command and wait for its answer; events that come meanwhile are kept.

        Raises:
            RuntimeError: the browser refuses, is silent or is gone.
        """
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.asks, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next(method)
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self.events.append(answer)

    def wait_for(self, event: str) -> None:
        """Read on until an event has come."""
        while not any(one.get("method") == event for one in self.events):
            self.events.append(self._next(event))

    def _next(self, awaited: str) -> dict:
        ends = time.monotonic() + LONGEST
        while b"\0" not in self.rest:
            ready, *_ = select.select([self.answers], [], [], max(0.0, ends - time.monotonic()))
            more = os.read(self.answers, 1 << 20) if ready else b""
            if not more:
                raise RuntimeError(f"{awaited}: the browser is {'gone' if ready else 'silent'}")
            self.rest += more
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)

    def open(self, file: Path, width: int = 1000, height: int = 900, dark: bool = False, medium: str = "screen") -> None:
        """Show a file as a screen of this size does, or print; what was said before is forgotten."""
        self.events.clear()
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", media=medium, features=[scheme])
        self.ask("Page.navigate", url=file.resolve().as_uri())
        self.wait_for("Page.loadEventFired")

    def run(self, script: str) -> object:
        """The value of a JavaScript expression; a promise is waited for.

        Raises:
            RuntimeError: it throws.
        """
        found = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(str(found["exceptionDetails"]))
        return found["result"].get("value")

    def press(self, key: str, code: int, text: str = "") -> None:
        """Press and let go of a key; text: what it types."""
        typed = {"text": text} if text else {}
        self.ask("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, windowsVirtualKeyCode=code, **typed)
        self.ask("Input.dispatchKeyEvent", type="keyUp", key=key, code=key, windowsVirtualKeyCode=code)

    def requests(self) -> list[str]:
        """Addresses that were asked for since the page was opened, data: ones left out."""
        sent = (one["params"]["request"]["url"] for one in self.events if one.get("method") == "Network.requestWillBeSent")
        return [url for url in sent if not url.startswith("data:")]

    def complaints(self) -> list[str]:
        """What the page has said to the console, and what went wrong in it."""
        told = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        return [json.dumps(one["params"]) for one in self.events if one.get("method") in told]

    def screenshot(self, height: int | None = None) -> bytes:
        """The page from its top as PNG; height: of the part wanted, pixels (default: the whole page)."""
        size = self.ask("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": height or size["height"], "scale": 1}
        return base64.b64decode(self.ask("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)["data"])

    def pdf(self) -> bytes:
        """The page as it is printed on A4."""
        return base64.b64decode(self.ask("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)["data"])


@contextmanager
def open_browser() -> Iterator[Page]:
    """A tab of a browser that knows nobody and reaches no network.

    Raises:
        RuntimeError: none is installed.
    """
    program = chromium()
    if not program:
        raise RuntimeError(CURE)
    theirs_in, asks = os.pipe()
    answers, theirs_out = os.pipe()

    def as_expected() -> None:
        """The browser reads descriptor 3 and writes 4, wherever ours are."""
        high = os.dup(theirs_in), os.dup(theirs_out)
        os.dup2(high[0], 3)
        os.dup2(high[1], 4)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        browser = subprocess.Popen(command, preexec_fn=as_expected, close_fds=False, **quiet)
        os.close(theirs_in)
        os.close(theirs_out)
        try:
            page = Page(asks, answers)
            target = page.ask("Target.createTarget", url="about:blank")["targetId"]
            page.session = page.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                page.ask(f"{domain}.enable")
            page.ask("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)
            yield page
        finally:
            browser.terminate()
            browser.wait(timeout=LONGEST)
            os.close(asks)
            os.close(answers)
