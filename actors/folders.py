"""Durable folders `<epoch>-<n>` of files under a manifest with sizes and SHA-256.

A folder is written under another name, each file and the folder synced, then renamed: it is there whole or
not at all."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import safetensors
import safetensors.numpy
import structlog

from schemas.errors import SnapshotError

FORMAT = 2
MANIFEST = "manifest.json"
DAMAGED = ".damaged"
T = TypeVar("T")
_NAME = re.compile("[0-9]+-[0-9]+")
log = structlog.get_logger()


class Damaged(SnapshotError):
    """Bytes on disk are not those that were written."""


def epoch_of(lease: int, restarts: int) -> int:
    """A group's epoch as one number: the lease's epoch, then how often the group's owner was restarted."""
    return lease << 20 | restarts


def sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_file(path: Path, data: bytes) -> None:
    """Old or new, never half: written beside, synced, renamed, the folder synced."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with part.open("wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    os.replace(part, path)
    sync_folder(path.parent)


def _sum(manifest: dict[str, Any]) -> str:
    """Of the manifest itself: one changed digit in `positions` would lose records."""
    return hashlib.sha256(json.dumps(manifest).encode()).hexdigest()


def write_folder(
    root: Path, name: str, files: Iterable[tuple[str, bytes]], meta: Callable[[], dict[str, Any]]
) -> Path:
    """Writes `root/name` with `files` and a manifest; `meta` is asked once all files are on disk."""
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = root / f".{name}.{os.getpid()}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(mode=0o700)
    try:
        listed = {}
        for file, data in files:
            with (part / file).open("wb") as f:
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
            listed[file] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        manifest = {"format": FORMAT, "files": listed, "meta": meta()}
        write_file(part / MANIFEST, json.dumps(manifest | {"sha256": _sum(manifest)}).encode())
        sync_folder(part)
        os.rename(part, root / name)
        sync_folder(root)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return root / name


@dataclass(frozen=True)
class Folder:
    """A written folder, its manifest read; files are verified as they are read."""

    path: Path
    meta: dict[str, Any]
    files: dict[str, dict[str, Any]]

    @classmethod
    def open(cls, path: Path) -> "Folder":
        try:
            manifest = json.loads((path / MANIFEST).read_bytes())
            wanted, found = manifest.pop("sha256"), manifest["format"]
            meta, files = manifest["meta"], manifest["files"]
            if wanted != _sum(manifest):
                raise ValueError("its SHA-256 is not the one in it")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise Damaged(f"{path}: its manifest cannot be read ({error}).") from error
        if found != FORMAT:
            raise SnapshotError(
                f"{path} has format {found}, this afresh reads {FORMAT}. Run the version that wrote it."
            )
        return cls(path, meta, files)

    def read(self, file: str) -> bytes:
        """The file's bytes. Raises Damaged unless size and SHA-256 are the manifest's."""
        try:
            data = (self.path / file).read_bytes()
            wanted = self.files[file]
        except (OSError, KeyError) as error:
            raise Damaged(f"{self.path / file} is missing ({error}).") from error
        if len(data) != wanted["size"] or hashlib.sha256(data).hexdigest() != wanted["sha256"]:
            raise Damaged(
                f"{self.path / file} is truncated or altered: its SHA-256 is not the manifest's."
            )
        return data

    def tensors(self, file: str) -> dict[str, np.ndarray]:
        return safetensors.numpy.load(self.read(file))


def _order(name: str) -> tuple[int, int]:
    epoch, n = name.split("-")
    return int(epoch), int(n)


def folders(root: Path) -> list[Path]:
    """The written folders under `root`, newest first."""
    if not root.is_dir():
        return []
    names = [p.name for p in root.iterdir() if _NAME.fullmatch(p.name) and p.is_dir()]
    return [root / name for name in sorted(names, key=_order, reverse=True)]


def next_name(root: Path, epoch: int) -> str:
    """Of the folder that an owner writes next."""
    return f"{epoch}-{1 + max((_order(p.name)[1] for p in folders(root)[:1]), default=0)}"


def newest(root: Path, load: Callable[[Folder], T]) -> T | None:
    """What `load` makes of the newest folder that verifies; None where there is none at all.

    Damaged ones newer than it are set aside, so that they do not count among those that are kept.
    Raises SnapshotError where there are some and none can be used."""
    reasons, damaged = [], list[Path]()
    for path in folders(root):
        try:
            found = load(Folder.open(path))
        except (SnapshotError, safetensors.SafetensorError) as error:
            reasons.append(str(error))
            log.warning("snapshot_unusable", path=str(path), reason=str(error))
            if isinstance(error, Damaged | safetensors.SafetensorError):
                damaged.append(path)
            continue
        for path in damaged:
            with suppress(OSError):
                path.rename(path.with_name(path.name + DAMAGED))
        return found
    if reasons:
        raise SnapshotError(
            f"none of the snapshots in {root} can be used. {reasons[0]} Mend it, or move the folder away "
            "to begin again from source.start."
        )
    return None


def prune(root: Path, keep: int, upto: str, also: frozenset[str] = frozenset()) -> None:
    """Deletes all but the `keep` newest folders up to `upto` (an owner's newest) and those in `also`, and
    what was set aside before these."""
    old = [p for p in folders(root) if _order(p.name) <= _order(upto)]
    gone = [p for p in old[keep:] if p.name not in also]
    if len(old) >= keep > 0:
        aside = [p for p in root.glob(f"*{DAMAGED}") if _NAME.fullmatch(p.stem)]
        gone += [p for p in aside if _order(p.stem) < _order(old[keep - 1].name)]
    gone += [p for p in root.glob(".*.part") if f".{os.getpid()}." not in p.name]
    for path in gone:
        shutil.rmtree(path, ignore_errors=True)
