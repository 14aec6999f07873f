"""Open one page in headless Chromium, through its debugging pipe: nothing but Chromium is needed.

python scripts/chromium.py build/gemma3-with-smollm2-tokenizer/report.html .github/report.png
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Root needs the first; containers have little shared memory; the rest keeps Chromium to itself.
FLAGS = (
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

# Chromium listens on 3 and speaks on 4, which may be taken by these very pipes.
CONNECT = """
import os, sys
for end, place in zip([os.dup(int(end)) for end in sys.argv[1:3]], (3, 4)):
    os.dup2(end, place)
    os.set_inheritable(place, True)
os.execv(sys.argv[3], sys.argv[3:])
"""


def find_chromium() -> str | None:
    """The browser's program, if there is one."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


class Page:
    """One tab.

    Args:
        read: Where the browser answers.
        write: Where it listens.

    Attributes:
        complaints: What scripts printed or threw, and what the browser logged, as it says it.
        requests: URLs that were asked for.
    """

    def __init__(self, read: int, write: int) -> None:
        self._answers = os.fdopen(read, "rb")
        self._orders = os.fdopen(write, "wb", buffering=0)
        self._buffer = b""
        self._last = 0
        self._events: list[dict[str, Any]] = []
        self._session: str | None = None
        self.complaints: list[str] = []
        self.requests: list[str] = []

    def attach(self) -> None:
        """Make the tab, and listen to what happens in it."""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def close(self) -> None:
        """Let go of the pipes."""
        self._answers.close()
        self._orders.close()

    def ask(self, method: str, **params: object) -> dict[str, Any]:
        """Send one command of the DevTools protocol and wait for its answer."""
        self._last += 1
        order: dict[str, Any] = {"id": self._last, "method": method, "params": params}
        if self._session:
            order["sessionId"] = self._session
        self._orders.write(json.dumps(order).encode() + b"\0")
        while (message := self._receive()).get("id") != self._last:
            self._note(message)
        if "error" in message:
            raise RuntimeError(f"{method}: {message['error']['message']}")
        result: dict[str, Any] = message["result"]
        return result

    def look_like(self, width: int, height: int = 800, *, dark: bool = False, media: str = "") -> None:
        """Set the size of the window in CSS pixels, the colour scheme, and the medium (``print``)."""
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", media=media, features=[scheme])

    def open(self, path: Path) -> None:
        """Load a file and wait until all of it is there."""
        self._events.clear()
        self.ask("Page.navigate", url=path.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._note(self._receive())

    def value(self, expression: str) -> Any:  # noqa: ANN401 - any JSON value
        """What a JavaScript expression is."""
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def screenshot(self, *, whole: bool = False) -> bytes:
        """The window, or the whole page, as PNG."""
        answer = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(answer["data"])

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            part = os.read(self._answers.fileno(), 1 << 16)
            if not part:
                raise RuntimeError("Chromium ended")
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        result: dict[str, Any] = json.loads(message)
        return result

    def _note(self, message: dict[str, Any]) -> None:
        if "method" not in message:
            return
        self._events.append(message)
        params = message["params"]
        match message["method"]:
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            case "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(params["exceptionDetails"]))
            case "Runtime.consoleAPICalled":
                self.complaints.append(json.dumps(params["args"]))
            case "Log.entryAdded":
                self.complaints.append(json.dumps(params["entry"]))


@contextmanager
def open_browser(program: str) -> Iterator[Page]:
    """Start Chromium with a profile of its own and end it afterwards.

    Args:
        program: As `find_chromium` finds it.

    Yields:
        An empty page.
    """
    listens, orders = os.pipe()
    answers, speaks = os.pipe()

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [program, "--headless", "--remote-debugging-pipe", f"--user-data-dir={profile}", *FLAGS]
        browser = subprocess.Popen(
            [sys.executable, "-IS", "-c", CONNECT, str(listens), str(speaks), *command],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(listens, speaks),
        )
        os.close(listens)
        os.close(speaks)
        try:
            page = Page(answers, orders)
            try:
                page.attach()
                yield page
            finally:
                page.close()
        finally:
            browser.terminate()
            browser.wait(20)


def main() -> None:
    """Take a screenshot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("page", type=Path)
    parser.add_argument("png", type=Path)
    parser.add_argument("--width", type=int, default=1000)
    parser.add_argument("--height", type=int, default=1180)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--whole", action="store_true", help="the whole page, not the window")
    options = parser.parse_args()
    program = find_chromium()
    if program is None:
        parser.error(f"none of {', '.join(PROGRAMS)} is installed")
    with open_browser(program) as page:
        page.look_like(options.width, options.height, dark=options.dark)
        page.open(options.page)
        options.png.write_bytes(page.screenshot(whole=options.whole))


if __name__ == "__main__":
    main()
