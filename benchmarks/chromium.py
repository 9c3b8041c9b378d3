"""A headless Chromium, driven over its DevTools protocol on a pipe: no driver and no package in between."""

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_ENDS = b"\0"
# Of a child with --remote-debugging-pipe: it reads commands on the one and writes answers on the other.
_CHILD_READS, _CHILD_WRITES = 3, 4
_FREE_FROM = 10
_CHUNK = 1 << 16
_PATIENCE_S = 300.0


class PageError(Exception):
    """What the browser, or a script in the page, says is wrong."""


def find_chromium() -> str | None:
    """Where a Chromium lies: CALIPSO_CHROMIUM, or the first of the usual names on the path."""
    return os.environ.get("CALIPSO_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Chromium:
    """One page in a browser of its own, which ends with it.

    Args:
        program: where Chromium lies.
        profile: an empty folder for what it writes, its log among it.
        flags: further command line arguments.
    """

    def __init__(self, program: str, profile: Path, *flags: str) -> None:
        own = [f"--user-data-dir={profile}", "--headless=new", "--remote-debugging-pipe", "--no-first-run"]
        # Chromium has no sandbox for root, and containers little shared memory.
        own += ["--disable-dev-shm-usage", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        log = _high(os.open(profile / "chromium.log", os.O_WRONLY | os.O_CREAT, 0o600))
        commands, self._write = map(_high, os.pipe())
        self._read, answers = map(_high, os.pipe())
        actions = [
            (os.POSIX_SPAWN_DUP2, commands, _CHILD_READS),
            (os.POSIX_SPAWN_DUP2, answers, _CHILD_WRITES),
            (os.POSIX_SPAWN_DUP2, log, 1),
            (os.POSIX_SPAWN_DUP2, log, 2),
        ]
        # A group of its own: the browser's own children end with it.
        self._process = os.posix_spawn(
            program, [program, *own, *flags, "about:blank"], os.environ, file_actions=actions, setpgroup=0
        )
        for descriptor in (commands, answers, log):
            os.close(descriptor)
        self._calls, self._rest, self._session = 0, b"", ""
        try:
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Chromium":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def call(self, method: str, **parameters: Any) -> Any:
        """One command of the protocol, and its result.

        Raises:
            PageError: the browser refuses it, has ended, or does not answer.
        """
        self._calls += 1
        command = {"id": self._calls, "method": method, "params": parameters}
        if self._session:
            command["sessionId"] = self._session
        content = json.dumps(command).encode() + _ENDS
        try:
            while content:
                content = content[os.write(self._write, content) :]
        except BrokenPipeError as error:
            message = f"{method}: the browser has ended"
            raise PageError(message) from error
        ends = time.monotonic() + _PATIENCE_S
        while True:
            answer = self._next(ends, method)
            if answer.get("id") != self._calls:
                continue
            if "error" in answer:
                message = f"{method}: {answer['error']['message']}"
                raise PageError(message)
            return answer["result"]

    def open(self, url: str) -> None:
        """Go to a page whose module page.js settles `ready`, and wait for that."""
        self.call("Page.enable")
        self.call("Page.navigate", url=url)
        self.evaluate(
            "new Promise(r => document.readyState === 'complete' ? r() : addEventListener('load', () => r()))"
        )
        self.evaluate("import('./page.js').then(page => page.ready).then(() => null)")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, or of the promise that it is.

        Raises:
            PageError: it throws.
        """
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise PageError(details.get("exception", {}).get("description") or details["text"])
        return answer["result"].get("value")

    def choose(self, selector: str, files: Sequence[Path]) -> None:
        """Choose files in an input of the page, as a person does."""
        document = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=document, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path.resolve()) for path in files])

    def screenshot(self, path: Path, *, width: int, height: int) -> None:
        """What the page looks like, as a PNG."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        """End the browser."""
        for descriptor in (self._write, self._read):
            os.close(descriptor)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process, signal.SIGKILL)
        os.waitpid(self._process, 0)

    def _next(self, ends: float, method: str) -> dict[str, Any]:
        while _ENDS not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(0.0, ends - time.monotonic()))
            if not ready:
                message = f"{method}: no answer in {_PATIENCE_S:.0f} s"
                raise PageError(message)
            chunk = os.read(self._read, _CHUNK)
            if not chunk:
                message = f"{method}: the browser has ended"
                raise PageError(message)
            self._rest += chunk
        content, _, self._rest = self._rest.partition(_ENDS)
        answer: dict[str, Any] = json.loads(content)
        return answer


def _high(descriptor: int) -> int:
    """The same file under a number that the child's own cannot overwrite."""
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _FREE_FROM)
    os.close(descriptor)
    return moved
