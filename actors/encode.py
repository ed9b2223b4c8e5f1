"""A release in ONNX Runtime: windows in, unit vectors and recurrent states out. No torch here."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import structlog

from actors.cut import Columns, Cut
from actors.served import read_release
from learning.inline import check_inline
from schemas.errors import ReleaseError
from schemas.published import Manifest
from schemas.records import F32, F64, I64, U8, Features, Rows
from schemas.stream import CHANNELS

log = structlog.get_logger()
IMAGES, IMAGE_BYTES = 64, 4 << 20  # in one call: what a backbone makes of them has to fit a cache


def session(graph: bytes, threads: int) -> ort.InferenceSession:
    """A session on the GPU where there is one, in full float32 precision.

    Raises ReleaseError where the graph names other files."""
    check_inline(graph)
    options = ort.SessionOptions()
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    providers: list[object] = ["CPUExecutionProvider"]
    # Ray's way of saying: not for you
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    gpu = Path("/dev/nvidia0").exists() and not hidden
    if gpu and "CUDAExecutionProvider" in ort.get_available_providers():
        providers.insert(0, ("CUDAExecutionProvider", {"use_tf32": "0"}))
    return ort.InferenceSession(graph, options, providers=providers)


@dataclass(frozen=True)
class Release:
    """One release's sessions. B entities, T rows, D dimensions, H state."""

    manifest: Manifest
    encode_session: ort.InferenceSession
    step_session: ort.InferenceSession | None  # None: every vector is encoded anew
    cut: Cut | None = None  # of rows that have other columns too

    @classmethod
    def load(cls, folder: Path, threads: int = 1, there: Columns | None = None) -> "Release":
        """there: columns of the rows that it will be given; None: its own. Raises ReleaseError."""
        manifest, graphs = read_release(folder)
        try:
            cut = None if there is None else Cut.of(Columns.released(manifest), there)
        except KeyError as lacking:
            raise ReleaseError(
                f"{folder}: the release reads {lacking.args[0]}, which rows have no more. Name it again under [stream] "
                "and start the daemon anew."
            ) from None
        step = session(graphs["step"], threads) if "step" in graphs else None
        return cls(manifest, session(graphs["encode"], threads), step, cut)

    @property
    def number(self) -> int:
        return self.manifest.release

    def encode(
        self,
        rows: Rows,
        lengths: I64,
        totals: F64,
        first_us: I64,
        own: Features | None = None,
        far: Features | None = None,
    ) -> tuple[F32, F32]:
        """The anchor rule's vectors of windows padded to [B, T, ...]: from a zero state, first Δt zero.

        own [B] and far [B, T]: what nodes have of their own, and each row's far one, where the stream says that.
        Returns embeddings [B, D] and states [B, H] (H = 0 where nothing recurs)."""
        b = len(lengths)
        if self.cut is not None:
            rows, totals = self.cut.rows(rows), totals[:, self.cut.totals]
        feed = {
            "time_us": rows.time_us,
            "numbers": rows.numbers,
            "categories": rows.categories,
            "missing": rows.missing,
            "length": lengths,
            "previous_us": rows.time_us[:, 0],
            "totals": totals,
            "first_us": first_us,
            "state": np.zeros((b, self.manifest.state), np.float32),
        }
        if own is not None and far is not None:
            if self.cut is not None:
                own, far = self.cut.features(own), self.cut.features(far)
            feed |= own.named("node") | far.named("far")
        found = self.encode_session.run(None, {i.name: feed[i.name] for i in self.manifest.encode})
        return found[0], found[1] if len(found) > 1 else np.zeros((b, 0), np.float32)

    def encode_images(self, pixels: U8) -> F32:
        """Vectors [N, D] of images [N, P]."""
        side = self.manifest.side
        if self.cut is not None:
            pixels = pixels[:, self.cut.pixels]
        shaped = pixels.reshape(len(pixels), side, side, CHANNELS)
        part = max(1, min(IMAGES, IMAGE_BYTES // shaped[:1].nbytes)) if len(shaped) else 1
        out = np.empty((len(shaped), self.manifest.dim), np.float32)
        for start in range(0, len(shaped), part):
            at = slice(start, start + part)
            out[at] = self.encode_session.run(None, {"pixels": shaped[at]})[0]
        return out

    def step(
        self, rows: Rows, previous_us: I64, totals: F64, first_us: I64, state: F32
    ) -> tuple[F32, F32]:
        """One more record for each of B entities: embeddings [B, D] and states [B, H]."""
        assert self.step_session is not None
        if self.cut is not None:
            rows, totals = self.cut.rows(rows), totals[:, self.cut.totals]
        feed = {
            "time_us": rows.time_us,
            "numbers": rows.numbers,
            "categories": rows.categories,
            "missing": rows.missing,
            "previous_us": previous_us,
            "totals": totals,
            "first_us": first_us,
            "state": state,
        }
        embedding, state = self.step_session.run(
            None, {i.name: feed[i.name] for i in self.manifest.step}
        )
        return embedding, state
