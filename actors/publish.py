"""Releases: from a durable learner snapshot to ONNX graphs that readers and shards may trust.

export > rotation onto the served release > ONNX checker > parity > files > `encoder:<release>` > `current`.
A release that a check refuses keeps its files in `refused/` and changes nothing for anybody."""

import hashlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np
import safetensors.torch
import structlog
from msgspec import Meta

from actors.encode import CURRENT, ENCODE, STEP, current_release, read_release, session
from actors.redis_sink import RedisSink
from actors.sink import Current, Value
from actors.snapshot import Folder, folders, write_file, write_folder
from learning.config import EncoderConfig
from schemas.errors import ReleaseError, SinkDown
from schemas.published import Gate, Input, Manifest, Overlap
from schemas.records import StreamConfig, Windows
from schemas.stats import PublisherStats

if TYPE_CHECKING:
    from torch import Tensor

    from learning.contract import View
    from learning.encoders.base import RecurrentEncoder

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
    keep_redis: Annotated[int, Meta(ge=2)] = 10


class Publish:
    """`oldest_release`: the oldest one that some live group's state carries; 0 where none is known."""

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
        self.oldest_release = 0
        self._name, self._root, self._releases = root.name, root, root / "releases"
        self._stream, self._encoder, self._config = stream, encoder, config
        self._sink, self._epoch, self._wall = sink, epoch, wall
        self._stats = PublisherStats()
        self._announced = 0  # the release that Redis is known to name
        self._tried = ""  # the newest learner snapshot that was looked at

    def run(self, stopping: Callable[[], bool]) -> None:
        while not stopping():
            self.turn()
            self._stats.progress += 1
            time.sleep(0.2)

    def turn(self) -> None:
        """Tells Redis of the current release where it does not know it; releases what is due."""
        current = current_release(self._releases)
        self._stats.release = current
        try:
            if current and (self._announced != current or self._sink.server_changed()):
                self._announce(current)
            self._sink.ping()
            self._stats.sink_up = True
        except SinkDown:
            self._stats.sink_up = False
        if self.oldest_release in (0, current):
            self._release_newest(current)
        if current:
            made = self._manifest(current).created_us / 1e6
            self._stats.release_age_s = max(self._wall() - made, 0.0)

    def stats(self) -> PublisherStats:
        return self._stats

    # -- a release --------------------------------------------------------------------------------

    def _release_newest(self, current: int) -> None:
        found = folders(self._root / "learner")
        if not found or found[0].name == self._tried:
            return
        self._tried = found[0].name
        if current and self._manifest(current).snapshot == found[0].name:
            return
        number = 1 + max(
            [current, *(int(p.name) for p in self._releases.glob("[0-9]*"))], default=0
        )
        began = time.monotonic()
        try:
            manifest = self._build(Folder.open(found[0]), number, current)
        except Exception as error:  # whatever the exporter raises, the release before goes on
            check = "parity" if "parity" in str(error) else "export"
            self._stats.refused[check] = self._stats.refused.get(check, 0) + 1
            log.error(
                "release_refused",
                release=number,
                reason=str(error),
                next="the one before is served",
            )
            return
        self._stats.export_s = time.monotonic() - began
        write_file(self._releases / CURRENT, str(number).encode())
        self._stats.releases += 1
        self._stats.release, self._stats.generation = number, manifest.generation
        if manifest.overlap_previous is not None:
            self._stats.overlap_cosine = manifest.overlap_previous.cosine
            self._stats.overlap_neighbours = manifest.overlap_previous.neighbours
        log.info("released", release=number, updates=manifest.updates, seconds=self._stats.export_s)
        self._prune(number)

    def _build(self, snapshot: Folder, number: int, current: int) -> Manifest:
        """Writes the release's folder. Raises ReleaseError where a check refuses it."""
        import torch

        from learning import compatibility, export
        from learning.encoders import build

        torch.set_num_threads(1)
        encoder = build(self._encoder, self._stream.shape)
        encoder.load_state_dict(safetensors.torch.load(snapshot.read(ENCODER_FILE)))
        resident = Windows.of_arrays(snapshot.tensors(RESIDENT_FILE))
        held_out = Windows.of_arrays(snapshot.tensors(HELD_OUT_FILE))
        generation, overlaps = 1, dict[str, Overlap]()
        if current:
            served = self._manifest(current)
            generation = served.generation
            mine, wanted = _of_encoder(encoder, resident), self._vectors(current, resident)
            compatibility.rotate(encoder, compatibility.procrustes(mine, wanted))
            first = min(int(p.name) for p in self._releases.glob("[0-9]*"))
            mine = _of_encoder(encoder, held_out)
            for key, other in (("previous", current), ("first", first)):
                theirs = self._vectors(other, held_out)
                cosine = compatibility.mean_cosine(mine, theirs)
                neighbours = compatibility.neighbour_overlap(mine, theirs)
                overlaps[key] = Overlap(other, len(held_out), cosine, neighbours)
        metadata = {"stream": self._name, "release": str(number), "generation": str(generation)}
        encode, step = export.export(encoder, metadata)
        worst = export.parity(encoder, encode, step, _some(resident, 64))
        gate = Gate("parity", worst, self._config.parity, worst <= self._config.parity)
        manifest = self._manifest_of(encode, step, number, generation, snapshot, gate, overlaps)
        root = self._releases if gate.ok else self._releases / "refused"
        write_folder(
            root,
            str(number),
            [(ENCODE, encode), (STEP, step)],
            lambda: msgspec.to_builtins(manifest),
        )
        if not gate.ok:
            raise ReleaseError(
                f"parity: ONNX Runtime and PyTorch differ by {worst:.2e}, at most {gate.threshold:.2e} is "
                f"allowed (release.parity). The graphs are in {root / str(number)}."
            )
        return manifest

    def _manifest_of(
        self,
        encode: bytes,
        step: bytes,
        number: int,
        generation: int,
        snapshot: Folder,
        gate: Gate,
        overlaps: dict[str, Overlap],
    ) -> Manifest:
        encode_in, encode_out = _interface(encode)
        step_in, step_out = _interface(step)
        return Manifest(
            stream=self._name,
            release=number,
            generation=generation,
            created_us=int(self._wall() * 1e6),
            dim=self._encoder.dim,
            window=self._encoder.window,
            entity=self._stream.entity,
            time=self._stream.time,
            time_unit=self._stream.time_unit,
            fields=self._stream.field,
            numbers=tuple(f.name for f in self._stream.numbers),
            categories=tuple(f.name for f in self._stream.categories),
            session_gap_us=self._stream.shape.session_gap_us,
            state=self._encoder.state,
            encode=encode_in,
            encode_out=encode_out,
            step=step_in,
            step_out=step_out,
            encode_sha256=hashlib.sha256(encode).hexdigest(),
            step_sha256=hashlib.sha256(step).hexdigest(),
            snapshot=snapshot.path.name,
            updates=snapshot.meta["updates"],
            gates=(gate,),
            overlap_previous=overlaps.get("previous"),
            overlap_first=overlaps.get("first"),
        )

    def _vectors(self, release: int, windows: Windows) -> "Tensor":
        """What a release that is on disk makes of the windows. [B, D]"""
        from learning import export

        _, encode, _ = read_release(self._releases / str(release))
        loaded = session(encode, 1)
        return _in_parts(windows, self._encoder.state, lambda view: export.run(loaded, view)[0])

    def _manifest(self, release: int) -> Manifest:
        return msgspec.convert(Folder.open(self._releases / str(release)).meta, Manifest)

    # -- Redis and disk ---------------------------------------------------------------------------

    def _announce(self, release: int) -> None:
        """`encoder:<release>` first, then `current`, so that whoever reads the one finds the other."""
        manifest, encode, step = read_release(self._releases / str(release))
        text = msgspec.json.encode(manifest).decode()
        graphs: dict[str, Value] = {
            "onnx": encode,
            "step_onnx": step,
            "sha256": manifest.encode_sha256,
        }
        self._sink.publish_release(release, manifest.generation, graphs, text, self._epoch)
        self._sink.set_current(Current(release, manifest.generation, manifest.dim), self._epoch)
        self._announced = release

    def _prune(self, newest: int) -> None:
        numbers = sorted((int(p.name) for p in self._releases.glob("[0-9]*")), reverse=True)
        first, used = numbers[-1], {newest, self.oldest_release}
        for number in numbers[KEEP:]:
            if number not in used and number != first:
                shutil.rmtree(self._releases / str(number), ignore_errors=True)


def _of_encoder(encoder: "RecurrentEncoder", windows: Windows) -> "Tensor":
    import torch

    def run(view: "View") -> "Tensor":
        with torch.no_grad():
            z_BD: Tensor = encoder.eval()(view).z_BD
            return z_BD

    return _in_parts(windows, encoder.config.state, run)


def _in_parts(windows: Windows, state: int, run: Callable[["View"], Any]) -> "Tensor":
    """Vectors [B, D] of many windows, a few hundred at a time."""
    import torch

    from learning.kinds.events import pad, subset

    order = np.argsort(np.diff(windows.offsets), kind="stable")  # like lengths together
    found = [
        torch.as_tensor(run(pad(subset(windows, at), state)))
        for at in np.split(order, np.arange(256, len(order), 256))
        if len(at)
    ]
    vectors = torch.cat(found) if found else torch.zeros(0, 1)
    return vectors[torch.as_tensor(np.argsort(order))]


def _some(windows: Windows, most: int) -> Windows:
    """The longest `most` windows, so that parity is tried on many rows."""
    from learning.kinds.events import subset

    return subset(windows, np.argsort(-np.diff(windows.offsets), kind="stable")[:most])


def _interface(graph: bytes) -> tuple[tuple[Input, ...], tuple[Input, ...]]:
    loaded = session(graph, 1)

    def described(found: Any) -> tuple[Input, ...]:
        return tuple(
            Input(i.name, i.type.removeprefix("tensor(").rstrip(")"), tuple(i.shape)) for i in found
        )

    return described(loaded.get_inputs()), described(loaded.get_outputs())
