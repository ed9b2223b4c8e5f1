"""From a durable learner snapshot to a release's folder: export > rotation onto the served one > parity > gates."""

from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import structlog
from msgspec import Meta

from actors import gates, labels
from actors.encode import session
from actors.folders import Folder, write_folder
from actors.gates import GatesConfig
from actors.graphs import described, files, in_parts, of_encoder, of_stream, some
from actors.served import REFUSED, read_release
from learning.config import EncoderConfig
from schemas.errors import ReleaseError
from schemas.published import Gate, Manifest, Overlap
from schemas.records import Windows
from schemas.stream import StreamConfig

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from torch import Tensor

    from learning.encoders.base import Encoder

log = structlog.get_logger()
ENCODER_FILE, RESIDENT_FILE, HELD_OUT_FILE = (
    "encoder.safetensors",
    "resident.safetensors",
    "held_out.safetensors",
)
Overlaps = dict[str, Overlap]
"""With the `previous` release and the generation's `first`."""


class GenerationConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[release.generation]`: vectors of one generation may be compared; what cannot be compared begins another."""

    overlap: Annotated[float, Meta(ge=-1, le=1)] = 0.3
    """Least mean cosine with the served release's vectors, and with those of the generation's first."""
    grace_s: Annotated[float, Meta(ge=0)] = 3600.0
    """So long the vectors of a generation are kept after readers have left it."""


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
    generation: GenerationConfig = GenerationConfig()
    keep_redis: Annotated[int, Meta(ge=2)] = 10


class Refused(ReleaseError):
    """Gates refuse a release."""

    def __init__(self, reason: str, gates: tuple[str, ...]) -> None:
        super().__init__(reason)
        self.gates = gates


@dataclass(frozen=True)
class Order:
    """What is to be built. newest: the highest generation there was; first: of the served generation's releases."""

    number: int
    newest: int
    first: int
    created_us: int
    force: bool  # whatever the gates say, but for parity


class Workshop:
    """Builds releases of one stream, into their folder or that of refused ones."""

    def __init__(
        self,
        root: Path,
        stream: StreamConfig,
        encoder: EncoderConfig,
        config: ReleaseConfig,
    ) -> None:
        self._name, self._releases = root.name, root / "releases"
        self._stream, self._encoder = stream, encoder
        self._config = config
        self.measured: tuple[Gate, ...] = ()  # of the last one built
        self._loaded = dict[
            int, tuple[int, "InferenceSession"]
        ]()  # H and graph; while one is built

    def ours(self, snapshot: Folder) -> bool:
        """Whether it is of the encoder that the settings name: the learner may still have another's."""
        found = snapshot.meta.get("encoder")
        return found is None or _same(found, self._encoder)

    def build(self, snapshot: Folder, order: Order, served: Manifest | None) -> Manifest:
        """Writes the release's folder. Raises ReleaseError where a check refuses it."""
        self.measured = ()
        try:
            return self._build(snapshot, order, served)
        finally:
            self._loaded.clear()

    def _build(self, snapshot: Folder, order: Order, served: Manifest | None) -> Manifest:
        # before what takes long: the learner keeps its newest two snapshots
        weights = snapshot.read(ENCODER_FILE)
        resident = Windows.of_arrays(snapshot.tensors(RESIDENT_FILE))
        held_out = Windows.of_arrays(snapshot.tensors(HELD_OUT_FILE))

        import safetensors.torch  # not above: shards and commands import this file, and need no torch
        import torch

        from learning import export
        from learning.encoders import build

        torch.set_num_threads(1)
        encoder = build(self._encoder, self._stream.shape)
        encoder.load_state_dict(safetensors.torch.load(weights))
        number, generation, overlaps = order.number, order.newest + 1, Overlaps()
        if served is not None and self._comparable(served):
            overlaps = self._brought_close(encoder, resident, held_out, served, order.first)
            if not self._apart(overlaps):
                generation = served.generation
        if served is not None and generation != served.generation:
            log.warning("generation_opens", release=number, generation=generation)
        metadata = {"stream": self._name, "release": str(number), "generation": str(generation)}
        graphs = export.export(encoder, metadata)
        worst = export.parity(encoder, graphs, some(resident, 64))
        parity = Gate("parity", worst, self._config.parity, worst <= self._config.parity)
        judged = held_out if len(held_out) >= gates.LEAST else resident
        beside = served if served is not None and self._same_records(served) else None
        within = overlaps if served is not None and generation == served.generation else {}
        strict = bool(snapshot.meta.get("challenger"))
        before = {beside.release, order.first} if beside is not None else set()
        every = self.measured = (
            parity,
            *self._collapse(encoder, some(judged, gates.JUDGED), before),
            *self._gates(encoder, (resident, held_out), beside, within, strict),
        )
        refused = tuple(g.name for g in (every if not order.force else (parity,)) if not g.ok)
        manifest = Manifest(
            stream=self._name,
            release=number,
            generation=generation,
            created_us=order.created_us,
            dim=self._encoder.dim,
            window=self._encoder.window,
            **of_stream(self._stream),
            state=self._encoder.state,
            encoder=msgspec.to_builtins(self._encoder),
            **described(graphs),
            snapshot=snapshot.path.name,
            updates=snapshot.meta["updates"],
            gates=every,
            overlap_previous=overlaps.get("previous"),
            overlap_first=overlaps.get("first"),
        )
        root = self._releases / REFUSED if refused else self._releases
        write_folder(root, str(number), files(graphs), lambda: msgspec.to_builtins(manifest))
        if refused:
            where = f"The graphs are in {root / str(number)}."
            raise Refused(f"{gates.reason(every)}. {where}", refused)
        return manifest

    def _collapse(self, encoder: "Encoder", judged: Windows, before: set[int]) -> list[Gate]:
        """Beside earlier releases, as far as their files are whole."""
        theirs = []
        for release in before:
            with suppress(ReleaseError):  # told where the two are compared
                theirs.append(self._vectors(release, judged))
        return gates.collapse(self._config.gates, of_encoder(encoder, judged), theirs)

    def _gates(
        self,
        encoder: "Encoder",
        windows: tuple[Windows, Windows],
        served: Manifest | None,
        overlaps: Overlaps,
        strict: bool,
    ) -> list[Gate]:
        """windows: of resident entities, of those held out."""
        c, judged = self._config.gates, windows[len(windows[1]) >= gates.LEAST]
        if strict:  # readers' space changes for it: it has to be no worse at all
            c = msgspec.structs.replace(c, recall_loss=0.0)
        theirs = partial(self._vectors, served.release) if served is not None else None
        gap_us = self._stream.shape.session_gap_us
        cosines = (getattr(overlaps.get(o), "cosine", None) for o in ("previous", "first"))
        return [
            *gates.self_retrieval(c, judged, gap_us, partial(of_encoder, encoder), theirs),
            *gates.probe(
                c,
                labels.known(self._releases.parent / "labels"),
                windows,
                partial(of_encoder, encoder),
                theirs,
            ),
            *gates.overlap(c, *cosines),
        ]

    # -- the served one ---------------------------------------------------------------------------

    def _comparable(self, served: Manifest) -> bool:
        """Whether it is an encoder of the same settings and records: its vectors could be ours."""
        e = self._encoder
        if not served.encoder:  # one that was made before manifests said so
            same = (served.dim, served.window, served.state) == (e.dim, e.window, e.state)
            return same and self._same_records(served)
        return self._same_records(served) and _same(served.encoder, e)

    def _same_records(self, served: Manifest) -> bool:
        ours = of_stream(self._stream)
        names = ("numbers", "categories", "node_numbers", "node_categories", "side")
        return all(getattr(served, name) == ours[name] for name in names)

    def _brought_close(
        self,
        encoder: "Encoder",
        resident: Windows,
        held_out: Windows,
        served: Manifest,
        first: int,
    ) -> Overlaps:
        """Rotates the encoder onto the served release; how far they agree on entities never learnt from."""
        from learning import compatibility

        mine, wanted = of_encoder(encoder, resident), self._vectors(served.release, resident)
        compatibility.rotate(encoder, compatibility.procrustes(mine, wanted))
        mine, found = of_encoder(encoder, held_out), Overlaps()
        others = {"previous": served.release, "first": first}
        for key, other in others.items() if len(held_out) > 1 else ():
            try:
                theirs = self._vectors(other, held_out)
            except ReleaseError as error:  # of an old one: that is only compared with
                log.error("release_damaged", release=other, reason=str(error), next="passed over")
                continue
            cosine = compatibility.mean_cosine(mine, theirs)
            neighbours = compatibility.neighbour_overlap(mine, theirs)
            found[key] = Overlap(other, len(held_out), cosine, neighbours)
        return found

    def _apart(self, overlaps: Overlaps) -> bool:
        """Whether readers could not compare them. Of images that are not kept there is nothing to fill another
        generation from: gates.overlap may refuse."""
        if self._stream.images and self._stream.shape.keep == "nothing":
            return False
        least = self._config.generation.overlap
        return any(o.cosine < least for o in overlaps.values() if o.entities >= gates.LEAST)

    def _vectors(self, release: int, windows: Windows) -> "Tensor":
        """What a release that is on disk makes of the windows. [B, D]"""
        from learning import export

        if release not in self._loaded:
            manifest, graphs = read_release(self._releases / str(release))
            self._loaded[release] = manifest.state, session(graphs["encode"], 1)
        state, loaded = self._loaded[release]
        return in_parts(windows, state, lambda view: export.run(loaded, view)[0])


def _same(found: dict[str, Any], encoder: EncoderConfig) -> bool:
    """Settings that came later than what was found have their defaults."""
    try:
        return bool(msgspec.convert(found, EncoderConfig) == encoder)
    except msgspec.ValidationError:
        return False
