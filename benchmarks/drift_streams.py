"""The streams of `make quality-drift`: real ones, what is changed in them, and encoders that learnt from their first
half."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from actors.decode import DecodeConfig, make_decoder
from actors.learn import learner_of
from actors.state import State
from benchmarks import cifar, college, retail
from benchmarks.college import College
from benchmarks.one_pass import anchored
from learning.config import EncoderConfig, GruConfig, LearnerConfig, ReplayConfig, VicregConfig
from learning.config_images import TimmConfig
from learning.encoders.base import Encoder
from learning.kinds.events import subset
from learning.student import embed
from schemas.records import F32, I64, Decoded, ImageRows, Rows, Windows
from schemas.stream import Shape

PERIOD = 6000  # windows that are resampled
UPDATES = 150
SAMPLED = 64  # windows of a micro-batch, as a shard samples
GRU = GruConfig(dim=64, hidden=64, window=64)
WIRED = Shape(0, 1)

Change = Callable[[Windows, np.random.Generator], Windows]


@dataclass
class Stream:
    """Windows in the order in which they came; `changes`: those of the period, otherwise."""

    name: str
    shape: Shape
    encoder: EncoderConfig
    windows: Windows
    time_us: I64  # [N] of each window
    changes: dict[str, Change]


# -- streams ----------------------------------------------------------------------------------------


def purchases(folder: Path) -> Stream:
    data, seed = retail.load(folder), 0
    shape = retail.STREAM.shape
    decoder = make_decoder(retail.STREAM, DecodeConfig(format="arrow"))
    state = State(shape, GRU.window, GRU.state, len(data.names))
    rng, parts = np.random.default_rng(seed), []
    for at, batch in retail.micro_batches(data):
        position = np.array([at])
        decoded, _ = decoder.decode(0, position, position, [None], [batch])
        touched = state.apply(decoded)
        some = rng.choice(touched.slots, min(SAMPLED, len(touched.slots)), replace=False)
        parts.append(anchored(state, np.sort(some)))
    windows = Windows.concat(parts)
    changes: dict[str, Change] = {
        "mean shift of one deviation": shifted,
        "half of the categories swapped": swapped,
    }
    return Stream("purchases", shape, GRU, windows, _last(windows), changes)


def messages(folder: Path) -> Stream:
    data = college.load(folder)
    windows = sent(data)

    def rewired(_period: Windows, rng: np.random.Generator) -> Windows:
        """Each edge keeps sender and time and gets the receiver of another one: who receives how much stays."""
        return subset(sent(replace(data, dst=rng.permutation(data.dst))), period(windows))

    return Stream("messages", WIRED, GRU, windows, _last(windows), {"edges rewired": rewired})


def sent(data: College) -> Windows:
    """A sender's messages are its events."""
    state = State(WIRED, GRU.window, GRU.state, data.nodes + 64)
    rng, parts, n = np.random.default_rng(0), [], len(data.src)
    for lo in range(0, n, 512):
        at = np.arange(lo, min(lo + 512, n))
        rows = Rows(
            data.time_s[at] * 1_000_000, at, np.zeros((len(at), 0), np.float32),
            data.dst[at, None] * 7_919, np.zeros((len(at), 1), np.bool_),
        )  # fmt: skip
        names = [f"n{x}" for x in data.src[at].tolist()]
        touched = state.apply(Decoded(rows, names, np.zeros(len(at), np.bool_), at))
        some = rng.choice(touched.slots, min(SAMPLED, len(touched.slots)), replace=False)
        parts.append(anchored(state, np.sort(some)))
    return Windows.concat(parts)


def images(folder: Path) -> Stream:
    part = cifar.load(folder, PERIOD * 2, 10, 10).train
    windows = cifar.windows(part)
    changes: dict[str, Change] = {"blurred": blurred, "hue shifted": hued}
    return Stream("images", cifar.SHAPE, TimmConfig(width=0.25), windows, _last(windows), changes)


def _last(windows: Windows) -> I64:
    return windows.rows.time_us[windows.offsets[1:] - 1]


def period(windows: Windows) -> I64:
    """The first PERIOD windows that were not learnt from."""
    half = len(windows) // 2
    return np.arange(half, min(half + PERIOD, len(windows)))


# -- changes ----------------------------------------------------------------------------------------


def shifted(windows: Windows, _rng: np.random.Generator) -> Windows:
    rows = windows.rows
    moved = rows.numbers + np.nanstd(np.clip(rows.numbers, -100, 100), axis=0)
    return replace(windows, rows=replace(rows, numbers=moved.astype(np.float32)))


def swapped(windows: Windows, rng: np.random.Generator) -> Windows:
    """Half of the values of the first category become others of it."""
    categories = windows.rows.categories.copy()
    which = rng.random(len(categories)) < 0.5
    categories[which, 0] = rng.permutation(categories[which, 0])
    return replace(windows, rows=replace(windows.rows, categories=categories))


def _pixels(windows: Windows, change: Callable[[torch.Tensor], torch.Tensor]) -> Windows:
    rows = windows.rows
    assert isinstance(rows, ImageRows)
    x = torch.from_numpy(rows.pixels.reshape(-1, 32, 32, 3)).permute(0, 3, 1, 2).float()
    pixels = change(x).round().clamp(0, 255).byte().permute(0, 2, 3, 1).reshape(len(rows), -1)
    return replace(windows, rows=replace(rows, pixels=pixels.numpy()))


def blurred(windows: Windows, _rng: np.random.Generator) -> Windows:
    pool = torch.nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    return _pixels(windows, pool.forward)


def hued(windows: Windows, _rng: np.random.Generator) -> Windows:
    return _pixels(windows, lambda x: x[:, [1, 2, 0]])  # a third of a turn


# -- vectors ---------------------------------------------------------------------------------------


def learnt(stream: Stream) -> Encoder:
    half = subset(stream.windows, np.arange(len(stream.windows) // 2))
    objective = (VicregConfig(),) if stream.shape.side else LearnerConfig().objective
    config = LearnerConfig(
        objective=objective,
        held_out_share=0.0,
        updates_per_record=1.0,
        replay=ReplayConfig(per_entity=8),
    )
    learner = learner_of(config, stream.encoder, stream.shape, "cpu")
    learner.receive(half)
    for _ in range(UPDATES):
        learner.learn()
    return learner.released()


def vectors(encoder: Encoder, windows: Windows) -> F32:
    return np.asarray(embed(encoder, windows).numpy())


STREAMS: dict[str, Callable[[Path], Stream]] = {
    "purchases": purchases,
    "messages": messages,
    "images": images,
}
