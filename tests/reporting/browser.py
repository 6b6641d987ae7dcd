"""A page in headless Chromium, looked at and used by its keyboard, over the DevTools protocol."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
"""None: there is none here."""
_FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--mute-audio", "--remote-debugging-port=0")
_PORT_FILE = "DevToolsActivePort"
_PATIENCE = 60.0
_HEIGHT = 900
_LOADED = """new Promise(done => {
    const ready = () => document.readyState === 'complete'
        && [...document.querySelectorAll('video, audio')].every(one => one.readyState > 0 || one.error);
    const look = () => ready() ? done(true) : setTimeout(look, 50);
    look();
})"""


class Browser:
    """One Chromium with one tab; a context manager.

    Attributes:
        errors: what the console complained of since the page was opened.
    """

    def __init__(self) -> None:
        self.errors: list[str] = []
        self._runner = asyncio.Runner()
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._calls = 0

    def __enter__(self) -> Browser:
        assert CHROMIUM
        command = [CHROMIUM, *_FLAGS, f"--user-data-dir={self._profile.name}", "about:blank"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            self._runner.run(asyncio.wait_for(self._connect(), _PATIENCE))
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if hasattr(self, "_session"):
            self._runner.run(self._session.close())
        self._process.kill()
        self._process.wait()
        self._runner.close()
        self._profile.cleanup()

    async def _connect(self) -> None:
        port_file = Path(self._profile.name) / _PORT_FILE
        while not port_file.exists() or "\n" not in port_file.read_text():
            await asyncio.sleep(0.1)
        address = f"http://127.0.0.1:{port_file.read_text().split()[0]}/json"
        self._session = aiohttp.ClientSession()
        tabs: list[dict[str, Any]] = []
        while not tabs:
            async with self._session.get(address) as answer:
                tabs = [tab for tab in await answer.json() if tab["type"] == "page"]
        self._socket = await self._session.ws_connect(tabs[0]["webSocketDebuggerUrl"], max_msg_size=0)
        for domain in ("Page", "Runtime", "Log"):
            await self._send(f"{domain}.enable")

    async def _send(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._calls += 1
        await self._socket.send_json({"id": self._calls, "method": method, "params": parameters})
        while True:
            message = await self._socket.receive_json()
            self._note(message)
            if message.get("id") == self._calls:
                assert "error" not in message, message
                return message["result"]

    def _note(self, message: dict[str, Any]) -> None:
        told = message.get("params", {})
        match message.get("method"):
            case "Runtime.exceptionThrown":
                self.errors.append(str(told["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if told["type"] in ("error", "warning", "assert"):
                self.errors.append(str(told["args"]))
            case "Log.entryAdded" if told["entry"]["level"] in ("error", "warning"):
                self.errors.append(told["entry"]["text"])

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._runner.run(asyncio.wait_for(self._send(method, **parameters), _PATIENCE))

    def open(self, page: Path, width: int, *, dark: bool = False) -> None:
        """Show a page, wait until its pictures and clips are there, and forget earlier complaints."""
        self.errors.clear()
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=_HEIGHT, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.send("Page.navigate", url=page.resolve().as_uri())
        assert self.run(f"location.pathname.endsWith('/{page.name}')")
        self.run(_LOADED)

    def run(self, script: str) -> Any:
        """The value of an expression, or of what it promises, in the page."""
        found = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, key: str, code: int) -> None:
        """A key as a person presses it."""
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)
