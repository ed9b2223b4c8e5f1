"""Releases: from a durable learner snapshot to ONNX graphs that readers and shards may trust.

export > rotation onto the served release > ONNX checker > parity > files > `encoder:<release>` > `current`.
A release that a check refuses keeps its files in `refused/` and changes nothing for anybody."""

import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import structlog
from msgspec import Meta

from actors import gates, requests
from actors.encode import session
from actors.folders import Folder, folders, write_folder
from actors.gates import GatesConfig
from actors.graphs import described, files, in_parts, of_encoder, of_stream, some
from actors.lease import refuse_replaced
from actors.redis_sink import RedisSink
from actors.served import current_release, read_release, set_current
from actors.sink import Current, Kind, Value
from actors.usage import cpu_s, resident_bytes
from learning.config import EncoderConfig
from schemas.errors import ReleaseError, SinkDown
from schemas.published import Gate, Manifest, Overlap
from schemas.records import Windows
from schemas.stats import PublisherStats
from schemas.stream import StreamConfig

if TYPE_CHECKING:
    from torch import Tensor

log = structlog.get_logger()
KEEP = 10
ENCODER_FILE, RESIDENT_FILE, HELD_OUT_FILE = (
    "encoder.safetensors",
    "resident.safetensors",
    "held_out.safetensors",
)


class ReleaseConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[release]`: when the learner's snapshot becomes a release, and what it must pass."""

    every_s: Annotated[float, Meta(gt=0)] = 300.0
    first_s: Annotated[float, Meta(gt=0)] = 30.0
    """The first release comes so soon after the first update: nothing is served before it."""
    every_updates: Annotated[int, Meta(ge=1)] = 20
    """At least so many updates lie between two releases."""
    parity: Annotated[float, Meta(gt=0)] = 1e-5
    """Largest difference allowed between ONNX Runtime and PyTorch."""
    gates: GatesConfig = GatesConfig()
    keep_redis: Annotated[int, Meta(ge=2)] = 10


class Refused(ReleaseError):
    """Gates refuse a release."""

    def __init__(self, reason: str, gates: tuple[str, ...]) -> None:
        super().__init__(reason)
        self.gates = gates


class Publish:
    """`oldest_release`: the oldest one that some live group's state carries; 0 where none does, below zero
    until the groups have said so: releases wait for that."""

    def __init__(
        self,
        root: Path,
        stream: StreamConfig,
        encoder: EncoderConfig,
        config: ReleaseConfig,
        sink: RedisSink,
        epoch: int,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.oldest_release = -1
        self._name, self._root, self._releases = root.name, root, root / "releases"
        self._refused = self._releases / "refused"
        self._stream, self._encoder, self._config = stream, encoder, config
        self._sink, self._epoch, self._wall = sink, epoch, wall
        self._stats = PublisherStats()
        self._announced = 0  # the release that Redis is known to name
        self._there: set[int] = set()  # releases that Redis is known to hold
        self._tried = ""  # the newest learner snapshot that was looked at
        self._told: Current | None = None  # what Redis names
        self._manifests: dict[int, Manifest] = {}

    def run(self, stopping: Callable[[], bool]) -> None:
        while not stopping():
            self.turn()
            self._stats.progress += 1
            time.sleep(0.2)

    def turn(self) -> None:
        """Tells Redis of the current release where it does not know it; releases what is due."""
        asked = requests.take(self._releases)
        if asked is not None and asked.rollback:
            self._roll_back(asked.rollback)
        current = current_release(self._releases)
        self._tell(current)
        self._stats.held = requests.held(self._releases)
        if asked is not None and not asked.rollback:
            self._tried = ""  # also one that was refused
            self._release_newest(current, force=asked.force)
        elif not self._stats.held and self.oldest_release in (0, current):
            self._release_newest(current)
        self._stats.requests += asked is not None
        if current:
            self._describe(self._manifest(current))
        self._stats.memory_bytes, self._stats.cpu_s = resident_bytes(), cpu_s()

    def _tell(self, current: int) -> None:
        """Lets Redis name and hold the current release: also one that was emptied or set back under us."""
        try:
            if self._sink.server_changed():
                self._announced, self._there = 0, set()
            told = self._told = self._sink.read_current()
            if current:
                if told is None:
                    self._there = set()
                if told is None or told.release != current or self._announced != current:
                    self._announce(current)
            self._stats.sink_up, self._stats.sink_error = True, ""
        except SinkDown as error:
            if not self._stats.sink_error:
                log.error(
                    "release_not_told", release=current, reason=str(error), next="tried again"
                )
            self._stats.sink_up, self._stats.sink_error = False, str(error)

    def _describe(self, m: Manifest) -> None:
        s = self._stats
        s.release, s.generation = m.release, m.generation
        s.release_age_s = max(self._wall() - m.created_us / 1e6, 0.0)
        if m.overlap_previous is not None:
            s.overlap_cosine = m.overlap_previous.cosine
            s.overlap_neighbours = m.overlap_previous.neighbours

    def stats(self) -> PublisherStats:
        return self._stats

    # -- a release --------------------------------------------------------------------------------

    def _roll_back(self, release: int) -> None:
        """Serves an older release again. None follows by itself until somebody asks for one."""
        try:
            read_release(self._releases / str(release))
        except ReleaseError as error:
            log.error("rollback_refused", release=release, reason=str(error))
            return
        refuse_replaced(self._root, self._epoch >> 20, "this publisher")
        try:
            requests.hold(self._releases, f"rolled back to {release}")
            with suppress(SinkDown):
                self._put(release, needed=True)
            set_current(self._releases, release)
        except OSError as error:  # the disk is full
            requests.resume(self._releases)
            log.error("rollback_refused", release=release, reason=str(error))
            return
        log.warning("rolled_back", release=release, next="no release until `afresh release`")

    def _release_newest(self, current: int, force: bool = False) -> None:
        found = folders(self._root / "learner")
        if not found or found[0].name == self._tried:
            return
        self._tried = found[0].name
        if current and self._manifest(current).snapshot == found[0].name:
            return
        told = self._told.release if self._told else 0  # where the disk has lost its releases
        number = 1 + max([current, told, *_numbers(self._releases), *_numbers(self._refused)])
        began = time.monotonic()
        try:
            manifest = self._build(Folder.open(found[0]), number, current, force)
        except Exception as error:  # whatever the exporter raises, the release before goes on
            checks = error.gates if isinstance(error, Refused) else ("export",)
            for check in checks:
                self._stats.refused[check] = self._stats.refused.get(check, 0) + 1
            log.error(
                "release_refused",
                release=number,
                reason=str(error),
                next="the one before is served",
            )
            for old in _numbers(self._refused)[KEEP:]:
                shutil.rmtree(self._refused / str(old), ignore_errors=True)
            return
        self._stats.export_s = time.monotonic() - began
        requests.resume(self._releases)
        self._switch(number)
        self._stats.releases += 1
        log.info("released", release=number, updates=manifest.updates, seconds=self._stats.export_s)

    def _switch(self, number: int) -> None:
        """Readers find the release in Redis before any vector of it: shards follow the disk."""
        refuse_replaced(self._root, self._epoch >> 20, "this publisher")
        with suppress(SinkDown):
            self._put(number, needed=True)
        set_current(self._releases, number)
        self._tell(number)

    def _build(self, snapshot: Folder, number: int, current: int, force: bool) -> Manifest:
        """Writes the release's folder. Raises ReleaseError where a check refuses it."""
        import safetensors.torch  # not above: shards and commands import this file, and need no torch
        import torch

        from learning import compatibility, export
        from learning.encoders import build

        torch.set_num_threads(1)
        encoder = build(self._encoder, self._stream.shape)
        encoder.load_state_dict(safetensors.torch.load(snapshot.read(ENCODER_FILE)))
        resident = Windows.of_arrays(snapshot.tensors(RESIDENT_FILE))
        held_out = Windows.of_arrays(snapshot.tensors(HELD_OUT_FILE))
        generation = 1 + (self._told.generation if self._told else 0)
        overlaps = dict[str, Overlap]()
        judged = held_out if len(held_out) >= gates.LEAST else resident
        if current:
            served = self._manifest(current)
            generation = served.generation
            mine, wanted = of_encoder(encoder, resident), self._vectors(current, resident)
            compatibility.rotate(encoder, compatibility.procrustes(mine, wanted))
            mine = of_encoder(encoder, held_out)
            others = {"previous": current, "first": _numbers(self._releases)[-1]}
            for key, other in others.items() if len(held_out) > 1 else ():
                try:
                    theirs = self._vectors(other, held_out)
                except ReleaseError as error:  # of an old one: that is only compared with
                    log.error(
                        "release_damaged", release=other, reason=str(error), next="passed over"
                    )
                    continue
                cosine = compatibility.mean_cosine(mine, theirs)
                neighbours = compatibility.neighbour_overlap(mine, theirs)
                overlaps[key] = Overlap(other, len(held_out), cosine, neighbours)
        metadata = {"stream": self._name, "release": str(number), "generation": str(generation)}
        graphs = export.export(encoder, metadata)
        worst = export.parity(encoder, graphs, some(resident, 64))
        c = self._config
        parity = Gate("parity", worst, c.parity, worst <= c.parity)
        passed = [
            *gates.collapse(c.gates, of_encoder(encoder, some(judged, gates.JUDGED))),
            *gates.self_retrieval(
                c.gates,
                judged,
                self._stream.shape.session_gap_us,
                partial(of_encoder, encoder),
                partial(self._vectors, current) if current else None,
            ),
            *gates.overlap(
                c.gates, *(getattr(overlaps.get(o), "cosine", None) for o in ("previous", "first"))
            ),
        ]
        every = (parity, *passed)
        self._stats.gate_values = {g.name: g.value for g in every}
        self._stats.gate_thresholds = {g.name: g.threshold for g in every}
        manifest = self._manifest_of(graphs, number, generation, snapshot, every, overlaps)
        refused = tuple(g.name for g in (every if not force else (parity,)) if not g.ok)
        root = self._refused if refused else self._releases
        write_folder(
            root,
            str(number),
            files(graphs),
            lambda: msgspec.to_builtins(manifest),
        )
        if refused:
            raise Refused(
                f"{gates.reason(every)}. The graphs are in {root / str(number)}.", refused
            )
        return manifest

    def _manifest_of(
        self,
        graphs: dict[str, bytes],
        number: int,
        generation: int,
        snapshot: Folder,
        passed: tuple[Gate, ...],
        overlaps: dict[str, Overlap],
    ) -> Manifest:
        return Manifest(
            stream=self._name,
            release=number,
            generation=generation,
            created_us=int(self._wall() * 1e6),
            dim=self._encoder.dim,
            window=self._encoder.window,
            **of_stream(self._stream),
            state=self._encoder.state,
            **described(graphs),
            snapshot=snapshot.path.name,
            updates=snapshot.meta["updates"],
            gates=passed,
            overlap_previous=overlaps.get("previous"),
            overlap_first=overlaps.get("first"),
        )

    def _vectors(self, release: int, windows: Windows) -> "Tensor":
        """What a release that is on disk makes of the windows. [B, D]"""
        from learning import export

        _, graphs = read_release(self._releases / str(release))
        loaded = session(graphs["encode"], 1)
        return in_parts(windows, self._encoder.state, lambda view: export.run(loaded, view)[0])

    def _manifest(self, release: int) -> Manifest:
        """Read once: a disk that fails later concerns no release that is served already."""
        if release not in self._manifests:
            meta = Folder.open(self._releases / str(release)).meta
            self._manifests[release] = msgspec.convert(meta, Manifest)
        return self._manifests[release]

    # -- Redis and disk ---------------------------------------------------------------------------

    def _announce(self, current: int) -> None:
        """Releases that Redis lacks, then `current`: whoever reads the one finds the other. Old ones go."""
        numbers, used = _numbers(self._releases), {current, self.oldest_release}
        kept = {*numbers[: self._config.keep_redis], *used} & set(numbers)
        for number in sorted(kept - self._there):
            self._put(number, needed=number == current)
        manifest = self._manifest(current)
        told = self._sink.read_current()
        kind: Kind = "rollback" if told is not None and current < told.release else "release"
        self._sink.set_current(
            Current(current, manifest.generation, manifest.dim), self._epoch, kind
        )
        for number in numbers:
            if number not in kept:
                self._sink.drop_release(number, self._epoch)
                self._there.discard(number)
        for number in numbers[
            max(KEEP, self._config.keep_redis) : -1
        ]:  # the first is compared with
            if number not in kept:
                shutil.rmtree(self._releases / str(number), ignore_errors=True)
        self._announced = current

    def _put(self, release: int, *, needed: bool) -> None:
        """`encoder:<release>`, from disk. One that is damaged there is passed over, unless `needed`."""
        try:
            manifest, found = read_release(self._releases / str(release))
        except ReleaseError as error:
            if needed:
                raise
            log.error("release_damaged", release=release, reason=str(error), next="passed over")
            return
        text = msgspec.json.encode(manifest).decode()
        graphs: dict[str, Value] = {
            "onnx" if graph == "encode" else f"{graph}_onnx": data for graph, data in found.items()
        }
        graphs["sha256"] = manifest.encode_sha256
        self._sink.publish_release(release, manifest.generation, graphs, text, self._epoch)
        self._there.add(release)


def _numbers(folder: Path) -> list[int]:
    """The releases in a folder, newest first."""
    return sorted((int(p.name) for p in folder.glob("*") if p.name.isdigit()), reverse=True)
