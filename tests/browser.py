"""A headless Chromium, spoken to over its debugging pipe: what it says, asks for, lays out and draws."""

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe"),
    *("--hide-scrollbars", "--force-device-scale-factor=1"),
)


_OVERLAPPING = """((nodes, outside) => {
  const boxes = [...document.querySelectorAll(nodes)].filter(node => node.checkVisibility() && !node.closest(outside))
    .map(node => [node, node.getBoundingClientRect()]).filter(([, box]) => box.width && box.height).slice(0, 400);
  const found = [];
  for (let i = 0; i < boxes.length; i++) for (let j = i + 1; j < boxes.length; j++) {
    const [[one, a], [other, b]] = [boxes[i], boxes[j]];
    if (one.contains(other) || other.contains(one)) continue;
    if (Math.min(a.right, b.right) - Math.max(a.left, b.left) > 2
      && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 2)
      found.push(one.outerHTML.slice(0, 80) + " | " + other.outerHTML.slice(0, 80));
  }
  return found;
})"""


def overlapping(nodes: str, outside: str = "nothing") -> str:
    """JavaScript that lists pairs of the first 400 visible nodes whose boxes overlap by more than two pixels.

    Args:
        nodes: their selector.
        outside: selector of what holds nodes that are left out.
    """
    return f"{_OVERLAPPING}({json.dumps(nodes)}, {json.dumps(outside)})"


class Browser:
    """One page of a browser.

    Attributes:
        said: what the page wrote to its console, and errors.
        asked: addresses that it asked for.
    """

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read, self._rest, self._number = write, read, b"", 0
        self._session: str | None = None
        self.said: list[str] = []
        self.asked: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to a command of the debugging protocol."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {} if self._session is None else {"sessionId": self._session}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                result: dict[str, Any] = answer["result"]
                return result

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = os.read(self._read, 1 << 20)
            assert part, "the browser ended"
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\0")
        answer: dict[str, Any] = json.loads(line)
        name, about = answer.get("method"), answer.get("params", {})
        if name == "Network.requestWillBeSent":
            self.asked += [url for url in [about["request"]["url"]] if not url.startswith("data:")]
        if name in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.said.append(json.dumps(about))
        return answer

    def show(
        self,
        address: str,
        width: int = 1400,
        height: int = 900,
        dark: bool = False,
        ready: str = "document.documentElement?.dataset.ready === 'yes'",
    ) -> None:
        """Open a page in a window of a size and a colour scheme, and wait until it has drawn its images."""
        self.said.clear()
        self.asked.clear()
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media="", features=[scheme])
        self.call("Page.navigate", url=address)
        self.wait_for(ready)

    def run(self, script: str) -> Any:
        """The value of an expression of the page, awaited."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, script: str, seconds: float = 30) -> None:
        """Wait until an expression of the page is true."""
        end = time.monotonic() + seconds
        while not self.run(f"Boolean({script})"):
            assert time.monotonic() < end, f"still not so after {seconds} s: {script}; the page said {self.said}"
            time.sleep(0.05)

    def photograph(self, path: Path, height: int | None = None) -> None:
        """A PNG of the page from its top, whole or of a height."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": height or size["height"], "scale": 1}
        found = self.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A browser with a new profile, which ends with the block."""
    assert CHROMIUM is not None
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()

    def connected() -> None:
        # Read ends first: a pipe's own number may be 3 or 4.
        ends = os.dup(theirs_in), os.dup(theirs_out)
        os.dup2(ends[0], 3)
        os.dup2(ends[1], 4)

    with _started([CHROMIUM, *_FLAGS, f"--user-data-dir={profile}"], connected):
        os.close(theirs_in)
        os.close(theirs_out)
        try:
            page = Browser(ours_out, ours_in)
            yield page
        finally:
            os.close(ours_out)
            os.close(ours_in)


@contextmanager
def _started(command: list[str], before: Callable[[], None]) -> Iterator[None]:
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(
        command, stdin=quiet, stdout=quiet, stderr=quiet, preexec_fn=before, close_fds=False, start_new_session=True
    )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
