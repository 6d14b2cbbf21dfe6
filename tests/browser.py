"""A headless Chromium, driven over its own pipe, so that no further package is needed."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

# The browser reads commands from descriptor 3 and answers on 4.
_LAUNCHER = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); "
    "os.execv(sys.argv[3], sys.argv[3:])"
)

_WORDS = """(() => {
  const words = node => [...node.childNodes].map(child =>
    child.nodeType === Node.TEXT_NODE ? child.data
    : ["STYLE", "SCRIPT", "TEMPLATE"].includes(child.tagName) ? ""
    : (child.shadowRoot ? words(child.shadowRoot) : "")
      + (child.contentDocument?.body ? words(child.contentDocument.body) : "")
      + words(child)).join(" ");
  return words(document.body);
})()"""


@contextmanager
def tensorboard(folder: Path) -> Iterator[str]:
    """The address of a TensorBoard over the runs in a folder."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        lines = (re.search(r"http://\S+?(?=/? )", line) for line in process.stderr)
        yield next(found for found in lines if found)[0]
    finally:
        process.terminate()
        process.wait(timeout=20)
        process.stderr.close()


class Browser:
    """One page of one browser; counts what it asks for and what it complains about."""

    def __init__(self, profile: Path) -> None:
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        command = [
            *(sys.executable, "-ISc", _LAUNCHER, str(to_browser), str(from_browser), CHROMIUM),
            *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *("--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"),
        ]
        self._process = subprocess.Popen(
            command,
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._pending = b""
        self._number = 0
        self._session: dict[str, str] = {}
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self._loaded = False
        targets = self.call("Target.getTargets")["targetInfos"]
        (page,) = [target["targetId"] for target in targets if target["type"] == "page"]
        attached = self.call("Target.attachToTarget", targetId=page, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters):
        """One command; events that come meanwhile are noted."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters, **self._session}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def open(self, url: str) -> None:
        """Load a page to its end."""
        self._loaded = False
        self.call("Page.navigate", url=url)
        while not self._loaded:
            self._next()

    def screenshot(
        self, path: Path, *, width: int, height: int | None = None, dark: bool = False
    ) -> tuple[int, int]:
        """Write the whole page as PNG; returns the width that its content takes, and its height."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        size = {"width": width, "height": height or 900, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        needed = self.evaluate("document.documentElement.scrollWidth")
        height = height or self.evaluate("document.documentElement.scrollHeight")
        self.call("Emulation.setDeviceMetricsOverride", **{**size, "height": height})
        picture = self.call("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(picture))
        return needed, height

    def words(self) -> str:
        """All text of the page, that of its web components and frames included."""
        return " ".join(self.evaluate(_WORDS).split())

    def wait_for(self, *expected: str) -> str:
        """Wait until all of some texts are on the page; returns its words."""

        def words_with_all() -> str:
            words = self.words()
            return words if all(text in words for text in expected) else ""

        return self.wait_until(words_with_all)

    def wait_until(self, found, *, seconds: float = 60):
        """Wait until a function gives something, and return that."""
        end = time.monotonic() + seconds
        while not (result := found()):
            assert time.monotonic() < end, f"still waiting; the page says {self.words()[:2000]}"
            time.sleep(0.2)
        return result

    def evaluate(self, expression: str):
        """The value of a JavaScript expression on the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"]["value"]

    def close(self) -> None:
        """End the browser."""
        self._session = {}
        self.call("Browser.close")
        self._process.wait(timeout=20)
        os.close(self._write)
        os.close(self._read)

    def _next(self):
        while b"\0" not in self._pending:
            piece = os.read(self._read, 1 << 20)
            assert piece, "the browser went away"
            self._pending += piece
        text, _, self._pending = self._pending.partition(b"\0")
        message = json.loads(text)
        kind, content = message.get("method"), message.get("params", {})
        if kind == "Network.requestWillBeSent":
            self.requests.append(content["request"]["url"])
        elif kind in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
            self.complaints.append(json.dumps(content))
        elif kind == "Page.loadEventFired":
            self._loaded = True
        return message
