"""The status page: one HTML file that asks /page.json every two seconds and /map.json every thirty.

It needs nothing from outside, and its policy lets it reach nothing but the daemon."""

import base64
import hashlib
import re
import time
from collections.abc import Callable
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from actors.served import current_release, numbers, read_manifest
from daemon.history import EVERY_S, History
from daemon.reading import Reader
from daemon.scatter import Sample, Scatter
from daemon.settings import Settings
from daemon.totals import Snapshot
from schemas.errors import ReleaseError
from schemas.stats import Changes

SHOWN = 10
HTML = resources.files("daemon").joinpath("page.html").read_text(encoding="utf-8")


def policy(html: str = HTML) -> str:
    """A Content-Security-Policy under which only the page's own script and style run."""

    def allowed(tag: str) -> str:
        found = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        sums = (hashlib.sha256(text.encode()).digest() for text in found)
        return " ".join(f"'sha256-{base64.b64encode(s).decode()}'" for s in sums)

    return (
        f"default-src 'none'; script-src {allowed('script')}; style-src {allowed('style')}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


HEADERS = {
    "Content-Security-Policy": policy(),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Releases:
    """The newest releases on disk, refused ones too. A release does not change: each is read once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[Path, dict[str, Any] | None] = {}

    def told(self) -> list[dict[str, Any]]:
        current = current_release(self._folder)
        folders = [*_newest(self._folder), *_newest(self._folder / "refused")]
        self._known = {path: self._known[path] for path in folders if path in self._known}
        found = []
        for path in folders:
            if path not in self._known:
                self._known[path] = _manifest(path)
            told = self._known[path]
            if told is not None:
                refused = path.parent.name == "refused"
                found.append(
                    told
                    | {"refused": refused, "current": not refused and told["release"] == current}
                )
        return sorted(found, key=lambda release: -release["release"])[:SHOWN]


def _newest(folder: Path) -> list[Path]:
    return [folder / str(number) for number in numbers(folder)[:SHOWN]]


def _manifest(path: Path) -> dict[str, Any] | None:
    """None where it is damaged, or was removed under us."""
    try:
        m = read_manifest(path)
    except ReleaseError:
        return None
    return {
        "release": m.release, "generation": m.generation, "created_us": m.created_us, "updates": m.updates,
        "gates": [msgspec.to_builtins(gate) for gate in m.gates],
        "overlap": msgspec.to_builtins(m.overlap_previous),
    }  # fmt: skip


class Page:
    """What the page shows; asked by several threads."""

    def __init__(
        self,
        history: History,
        releases: Releases,
        sample: Callable[[int], Sample],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._history, self._releases = history, releases
        self._map = Scatter(sample, clock)

    @classmethod
    def of(cls, settings: Settings, history: History) -> "Page":
        reader: list[Reader] = []  # connects when somebody looks on

        def sample(n: int) -> Sample:
            if not reader:
                reader.append(Reader(settings))
            return reader[0].sample(n)

        return cls(history, Releases(settings.releases), sample)

    def told(self, s: Snapshot, health: list[str], ready: list[str]) -> dict[str, Any]:
        """/page.json."""
        letters = [letter for shard in s.shards.values() for letter in shard.letters]
        letters.sort(key=lambda letter: -letter.time_ms)
        groups = [
            {
                "group": g.group, "shard": name, "phase": g.phase, "lag": g.lag, "entities": g.entities,
                "release": g.release, "owed": g.to_encode, "snapshot_age_s": g.snapshot_age_s,
            }
            for name, shard in s.shards.items()
            for g in shard.groups
        ]  # fmt: skip
        return {
            "stream": s.stream, "version": version("afresh"), "every_s": EVERY_S,
            "health": health, "ready": ready,
            "up": {
                "Kafka": bool(s.shards) and all(shard.source_up for shard in s.shards.values()),
                "Redis": bool(s.shards) and all(shard.sink_up for shard in s.shards.values()),
            },
            "figures": self._history.told(),
            "groups": sorted(groups, key=lambda group: group["group"]),
            "releases": self._releases.told(),
            "held": s.publisher.held if s.publisher is not None else "",
            "paused": s.learning_paused,
            "letters": letters,
            "changes": s.learner.changes if s.learner is not None else Changes(),
            "restarts": s.restarts,
        }  # fmt: skip

    def map(self) -> dict[str, Any]:
        """/map.json."""
        return self._map.told()
