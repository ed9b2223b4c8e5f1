"""A page in headless Chromium, where Debian's package is installed."""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

NOBODY = "not an origin"
"""In the network log: asked for by no page."""


@dataclass(frozen=True)
class Seen:
    """The page's DOM once its script has run for a while, what it wrote to the console, what was asked for."""

    dom: str
    console: list[str]
    asked: set[str]

    def text(self, key: str) -> str:
        """The number of a tile."""
        found = re.search(rf'id="tile-{key}"[^>]*><span>[^<]*</span><b>([^<]*)</b>', self.dom)
        assert found, f"no tile {key}: {self.dom[:2000]}"
        return found[1]


def browse(url: str, folder: Path, *arguments: str) -> Seen:
    """Nothing but 127.0.0.1 has an address there."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("Debian's package chromium is not installed")
    log = folder / "net.json"
    command = [
        chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", f"--user-data-dir={folder / 'profile'}",
        "--enable-logging=stderr", f"--log-net-log={log}", "--virtual-time-budget=3500", "--dump-dom",
        *arguments, url,
    ]  # fmt: skip
    done = subprocess.run(command, check=True, capture_output=True, timeout=90)
    said = done.stderr.decode(errors="replace").splitlines()
    return Seen(done.stdout.decode(), [line for line in said if "CONSOLE" in line], asked_for(log))


def asked_for(log: Path) -> set[str]:
    """Addresses that a page asked for, by the network log; not those of Chromium itself, which come from no page."""
    found = json.loads(log.read_text())
    start = found["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    asked = [
        event["params"] for event in found["events"] if event["type"] == start and "params" in event
    ]
    return {request["url"] for request in asked if request.get("initiator", NOBODY) != NOBODY}
