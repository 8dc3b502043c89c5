"""A headless Chromium, driven over its DevTools protocol by a pair of pipes: no port, no driver.

    async with chromium(folder) as browser:
        page = await browser.open("http://127.0.0.1:8000/console", dark=True)
        await page.until("document.querySelectorAll('#replicas tr').length == 2")
        (folder / "page.png").write_bytes(await page.screenshot())
        assert page.complaints == []

The protocol: https://chromedevtools.github.io/devtools-protocol/. Messages are JSON, each ended by
a zero byte, read by the browser at descriptor 3 and written by it at 4.
"""

from __future__ import annotations

import asyncio
import base64
import fcntl
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

NAMES: Final = ("chromium", "chromium-browser", "google-chrome")
FLAGS: Final = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-extensions", "--hide-scrollbars", "--force-color-profile=srgb",
    "--remote-debugging-pipe",
)  # fmt: skip
KEYS: Final = {
    "Tab": ("Tab", 9, ""), "Enter": ("Enter", 13, "\r"), " ": ("Space", 32, " "),
    "Escape": ("Escape", 27, ""),
}  # fmt: skip


def found_chromium() -> str | None:
    """Where it is, if it is here."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One tab. `complaints` is what the browser has found wrong: errors in the console, exceptions,
    refused loads, violations of the page's own policy."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session
        self.complaints: list[str] = []

    async def send(self, method: str, **params: Any) -> Any:
        """A command of the protocol. Raises RuntimeError with the browser's message."""
        return await self._browser.send(method, self._session, **params)

    def told(self, method: str, params: Any) -> None:
        """An event of the protocol."""
        if method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(params["exceptionDetails"])[:500])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            self.complaints.append(json.dumps(params["args"])[:500])
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.complaints.append(json.dumps(params["entry"])[:500])
        elif method == "Audits.issueAdded" and params["issue"]["code"] != "PerformanceIssue":
            self.complaints.append(json.dumps(params["issue"])[:500])

    async def js(self, expression: str) -> Any:
        """The value of an expression, awaited. Raises RuntimeError for what it throws."""
        done = await self.send(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in done:
            raise RuntimeError(json.dumps(done["exceptionDetails"])[:1000])
        return done["result"].get("value")

    async def until(self, expression: str, *, within_s: float = 30.0) -> None:
        """Look until it is true. Raises TimeoutError."""
        async with asyncio.timeout(within_s):
            while not await self.js(f"Boolean({expression})"):
                await asyncio.sleep(0.05)

    async def press(self, key: str, *, shift: bool = False) -> None:
        """One key, down and up."""
        code, number, text = KEYS[key]
        common = {"key": key, "code": code, "windowsVirtualKeyCode": number}
        common["modifiers"] = 8 if shift else 0
        await self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **common)
        await self.send("Input.dispatchKeyEvent", type="keyUp", **common)

    async def type(self, text: str) -> None:
        """Into what has the focus."""
        await self.send("Input.insertText", text=text)

    async def prefer(self, **features: str) -> None:
        """What the system is said to want: `prefers_color_scheme="dark"` and the like."""
        listed = [{"name": k.replace("_", "-"), "value": v} for k, v in features.items()]
        await self.send("Emulation.setEmulatedMedia", features=listed)

    async def resize(self, width: int, height: int) -> None:
        """The window."""
        await self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    async def screenshot(self) -> bytes:
        """A PNG of what the window shows."""
        shot = await self.send("Page.captureScreenshot", format="png")
        return base64.b64decode(shot["data"])


class Browser:
    """One process."""

    def __init__(self, to_browser: int, reader: asyncio.StreamReader) -> None:
        self._to_browser = to_browser
        self._reader = reader
        self._number = 0
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._pages: dict[str, Page] = {}

    async def send(self, method: str, session: str | None = None, **params: Any) -> Any:
        """A command of the protocol. Raises RuntimeError with the browser's message."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        future = self._waiting[self._number] = asyncio.get_running_loop().create_future()
        os.write(self._to_browser, json.dumps(message).encode() + b"\0")
        async with asyncio.timeout(30):
            return await future

    async def listen(self) -> None:
        """Take in what it says, until it is gone."""
        while True:
            try:
                message = json.loads((await self._reader.readuntil(b"\0"))[:-1])
            except asyncio.IncompleteReadError:
                return
            future = self._waiting.pop(message.get("id", 0), None)
            if future is not None and not future.done():
                if "error" in message:
                    future.set_exception(RuntimeError(message["error"]["message"]))
                else:
                    future.set_result(message["result"])
            elif "method" in message:
                page = self._pages.get(message.get("sessionId", ""))
                if page is not None:
                    page.told(message["method"], message["params"])

    async def open(self, url: str, *, width: int = 1440, height: int = 1000) -> Page:
        """A new tab at an address."""
        target = (await self.send("Target.createTarget", url="about:blank"))["targetId"]
        attached = await self.send("Target.attachToTarget", targetId=target, flatten=True)
        page = self._pages[attached["sessionId"]] = Page(self, attached["sessionId"])
        for domain in ("Page", "Runtime", "Log", "Audits"):
            await page.send(f"{domain}.enable")
        await page.resize(width, height)
        await page.send("Page.navigate", url=url)
        await page.until("location.href != 'about:blank' && document.readyState == 'complete'")
        return page


def _started(program: str, folder: Path) -> tuple[int, int, int]:
    """Its process, and our ends of the pipes: to write to, to read from."""
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    # At other numbers than those they will have there, whatever is open here.
    high = [fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, 10) for each in (theirs_in, theirs_out)]
    log = str(folder / "chromium.log")
    pid = os.posix_spawn(
        program,
        [program, *FLAGS, f"--user-data-dir={folder / 'profile'}", "about:blank"],
        {**os.environ, "HOME": str(folder)},
        file_actions=[
            (os.POSIX_SPAWN_DUP2, high[0], 3),
            (os.POSIX_SPAWN_DUP2, high[1], 4),
            (os.POSIX_SPAWN_OPEN, 2, log, os.O_CREAT | os.O_WRONLY, 0o600),
        ],
        setpgroup=0,
    )
    for each in (theirs_in, theirs_out, *high):
        os.close(each)
    return pid, ours_out, ours_in


def _end(pid: int) -> None:
    """It and whatever it has started."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


@asynccontextmanager
async def chromium(folder: Path) -> AsyncIterator[Browser]:
    """One that keeps what it must in `folder`. Needs `found_chromium()`."""
    program = found_chromium()
    assert program is not None
    pid, to_browser, from_browser = _started(program, folder)
    reader = asyncio.StreamReader(limit=64 * 1024 * 1024)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(from_browser, "rb")
    )
    browser = Browser(to_browser, reader)
    listening = asyncio.create_task(browser.listen())
    try:
        yield browser
    finally:
        with suppress(TimeoutError, RuntimeError, OSError):
            await browser.send("Browser.close")
        listening.cancel()
        with suppress(asyncio.CancelledError):
            await listening
        transport.close()
        os.close(to_browser)
        _end(pid)
