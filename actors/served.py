"""Releases on disk, and which of them is served: a command that reads them needs no runtime for their graphs.

A release is the folder `<state>/<stream>/releases/<r>` of its graphs (encode.onnx, ...), its manifest holding a
schemas.published.Manifest. The file `releases/current` names the one to serve."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import structlog

from actors.folders import Folder, write_file
from schemas.errors import ReleaseError, SnapshotError
from schemas.published import Manifest

log = structlog.get_logger()
CURRENT = "current"
REFUSED = "refused"  # folder of what a gate refuses
GRAPHS = ("encode", "step", "score")  # a release holds `encode` and one of the others


@dataclass(frozen=True)
class Served:
    """What `releases/current` says; zeros before the first release."""

    release: int = 0
    swap: int = 0  # how often `release` has changed
    next: int = 0  # a release of another generation, which is being filled beside; 0: none
    generation: int = 0  # ... that one
    left_us: dict[int, int] = field(default_factory=dict)
    """Generations that are still kept: when readers left them."""

    @property
    def others(self) -> tuple[int, ...]:
        """Generations that readers may still look into, or soon will."""
        return (*self.left_us, *([self.generation] if self.next else []))


def served(releases: Path) -> Served:
    """The file's words: release, swap, `<next>:<generation>`, then `<generation>:<left_us>` of each that is kept."""
    try:
        release, swap, *more = (releases / CURRENT).read_text().split()
        pairs = [(int(a), int(b)) for a, b in (word.split(":") for word in more)]
        return Served(int(release), int(swap), *(pairs[0] if pairs else (0, 0)), dict(pairs[1:]))
    except (OSError, ValueError):
        return Served()


def set_served(releases: Path, new: Served) -> None:
    """Shards look here."""
    left = [f"{generation}:{us}" for generation, us in new.left_us.items()]
    words = [str(new.release), str(new.swap), f"{new.next}:{new.generation}", *left]
    write_file(releases / CURRENT, " ".join(words).encode())


def give_up(releases: Path, left_us: int = 0) -> None:
    """What was being filled is of no use to anybody. left_us: as of when it counts as left; 0: it goes at once."""
    now = served(releases)
    left = {**now.left_us, now.generation: left_us}
    set_served(releases, replace(now, next=0, generation=0, left_us=left))


def current_release(releases: Path) -> int:
    return served(releases).release


def set_current(releases: Path, release: int) -> None:
    """Serves another release of the same generation."""
    now = served(releases)
    set_served(releases, replace(now, release=release, swap=now.swap + 1))


def usable_release(releases: Path) -> int:
    """The release to serve, verified; 0 where there is none yet.

    Where its files are damaged the newest whole one before it becomes current, if there is one of its generation.
    ReleaseError: none is whole."""
    now = served(releases)
    current = now.release
    if not current:
        return 0
    if now.next:
        try:
            read_release(releases / str(now.next))
        except ReleaseError as error:
            log.error("release_damaged", release=now.next, reason=str(error), next="given up")
            give_up(releases)
    reasons = []
    before = [n for n in numbers(releases) if n <= current]
    mine = _generation(releases / str(current))
    for number in sorted(before, key=lambda n: _generation(releases / str(n)) != mine):
        try:
            manifest, _ = read_release(releases / str(number))
        except ReleaseError as error:
            reasons.append(str(error))
            log.error("release_damaged", release=number, reason=str(error), next="the one before")
            continue
        if number != current:
            now = served(releases)
            left_us = {g: us for g, us in now.left_us.items() if g != manifest.generation}
            set_served(releases, replace(now, release=number, swap=now.swap + 1, left_us=left_us))
        return number
    raise ReleaseError(
        f"{releases}: none of the releases up to {current} is whole. {reasons[0] if reasons else ''} Restore the "
        "folder from a backup, or remove it, and the learner's next snapshot becomes the first release of a new "
        "generation."
    )


def numbers(folder: Path) -> list[int]:
    """The releases in a folder, newest first; whatever else lies there (`5.bak`) is none."""
    names = [p.name for p in folder.glob("*")]
    return sorted((int(n) for n in names if n.isascii() and n.isdigit()), reverse=True)


def file_of(graph: str) -> str:
    return f"{graph}.onnx"


def read_manifest(folder: Path) -> Manifest:
    """Without the graphs, which may be large. Raises ReleaseError."""
    with _whole(folder):
        return msgspec.convert(Folder.open(folder).meta, Manifest)


def _generation(folder: Path) -> int:
    """0 where its manifest cannot be read."""
    try:
        return read_manifest(folder).generation
    except ReleaseError:
        return 0


@contextmanager
def _whole(folder: Path) -> Iterator[None]:
    try:
        yield
    except (SnapshotError, msgspec.ValidationError) as error:
        raise ReleaseError(f"{folder}: the release cannot be used: {error}") from error


def read_release(folder: Path) -> tuple[Manifest, dict[str, bytes]]:
    """Manifest and graphs by name. Raises ReleaseError unless their SHA-256 are the manifest's."""
    with _whole(folder):
        found = Folder.open(folder)
        manifest = msgspec.convert(found.meta, Manifest)
        there = [graph for graph in GRAPHS if getattr(manifest, f"{graph}_sha256")]
        return manifest, {graph: found.read(file_of(graph)) for graph in there}
