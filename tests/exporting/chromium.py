"""Chromium without a window, by the DevTools protocol over pipes: no library, no open port.

Protocol: https://chromedevtools.github.io/devtools-protocol/; messages are JSON, each ended by a
zero byte, on file descriptors 3 (to the browser) and 4 (from it).
"""

import base64
import fcntl
import json
import os
import select
import signal
import time
from contextlib import suppress

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
    # WebGPU, and WebGL, by a GPU in software
    "--enable-unsafe-webgpu",
    "--use-webgpu-adapter=swiftshader",
    "--enable-unsafe-swiftshader",
    # a camera that shows a pattern
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)
PATIENCE = 240  # seconds for one answer, on a busy machine


class Chromium:
    """One page of a browser.

    Args:
        program: Chromium's path.
        profile: An empty folder for it.
    """

    def __init__(self, program, profile):
        theirs, self._to = os.pipe()
        self._from, answers = os.pipe()
        self._process = _spawn(
            [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"], theirs, answers
        )
        self._unread, self._number, self._session = b"", 0, None
        self.events = []  # what the page did, as (method, parameters)

        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=page, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        """Ask the browser, and wait for its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")

        deadline = time.monotonic() + PATIENCE
        while (answer := self._next(deadline)).get("id") != self._number:
            if "method" in answer:
                self.events.append((answer["method"], answer["params"]))
        assert "error" not in answer, f"{method}: {answer.get('error')}"
        return answer["result"]

    def run(self, script):
        """The value of a JavaScript expression; of a promise, what it resolves to."""
        answer = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, condition):
        """Wait until a JavaScript expression is true, asked by the page before each drawing."""
        self.run(
            f"""new Promise((resolve) => {{
                const look = () => ({condition}) ? resolve() : setTimeout(look, 20);
                look();
            }})"""
        )

    def open(self, url):
        """Go to a page, and wait until it has loaded."""
        self.call("Page.navigate", url=url)
        self.wait_for(f"location.href === {url!r} && document.readyState === 'complete'")

    def choose_files(self, selector, files):
        """Choose files in an input of the page."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])

    def look(self, width, height, scheme):
        """Set the size of the window, in CSS pixels, and `light` or `dark`."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", features=[feature])

    def screenshot(self, file):
        """Write the whole page as a PNG file."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shot["data"]))

    def close(self):
        """End the browser."""
        with suppress(ProcessLookupError):
            os.killpg(self._process, signal.SIGTERM)
        os.waitpid(self._process, 0)
        os.close(self._to)
        os.close(self._from)

    def _next(self, deadline):
        """The next message of the browser."""
        while b"\0" not in self._unread:
            readable, _, _ = select.select([self._from], [], [], deadline - time.monotonic())
            assert readable, f"Chromium did not answer within {PATIENCE} s"
            received = os.read(self._from, 1 << 20)
            assert received, "Chromium has ended"
            self._unread += received
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)


def _spawn(command, to_browser, from_browser):
    """Start a process in a group of its own, with two ends of pipes as its descriptors 3 and 4."""
    # Beyond 4 first, so that neither is in the other's place.
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (to_browser, from_browser)]
    actions = [(os.POSIX_SPAWN_DUP2, ends[0], 3), (os.POSIX_SPAWN_DUP2, ends[1], 4)]
    actions += [(os.POSIX_SPAWN_OPEN, end, os.devnull, os.O_WRONLY, 0) for end in (1, 2)]
    process = os.posix_spawn(command[0], command, os.environ, file_actions=actions, setpgroup=0)
    for end in (to_browser, from_browser, *ends):
        os.close(end)
    return process
