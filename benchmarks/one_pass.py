"""Online Retail through the production path in one pass, without servers: decode, state, sampled
training windows, learner; at each cut-off the embeddings by the anchor rule.

No embedding has seen a row after its cut-off: neither its window nor the weights."""

import time
from dataclasses import dataclass, field

import numpy as np
import torch

from actors.decode import DecodeConfig, make_decoder
from actors.shard_config import ShardConfig
from actors.state import State
from benchmarks.retail import STREAM, Queries, Retail, cut_offs, micro_batches
from learning.compatibility import procrustes, rotate
from learning.config import EncoderConfig, LearnerConfig
from learning.field_learner import FieldLearner
from learning.student import embed
from schemas.records import F32, I64, Windows, category_hash

TOPIC = 0


@dataclass
class Pass:
    """What one pass gives."""

    vectors: F32  # [Q, D] in one space: rotated from cut-off to cut-off as releases are
    windows: list[Windows]  # of the customers of each cut-off, as the anchor rule cuts them
    updates: int = 0
    sequences: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


def anchored(state: State, slots: I64) -> Windows:
    """The rows that the anchor rule encodes for each slot."""
    lengths = state.anchored(slots)
    rows, totals = state.padded(slots, lengths)
    valid = np.arange(rows.time_us.shape[1]) < lengths[:, None]
    names = np.array([category_hash(state.names[slot] or "") for slot in slots.tolist()])
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    return Windows(rows.take(valid), offsets, totals, state.first_us[slots], names)


def run(
    data: Retail, asked: Queries, config: LearnerConfig, encoder: EncoderConfig, seed: int
) -> Pass:
    """`config.updates_per_record` updates per row of the stream, whatever the learner counts as new."""
    decoder = make_decoder(STREAM, DecodeConfig(format="arrow"))
    state = State(STREAM.shape, encoder.window, encoder.state, len(data.names))
    learner = FieldLearner(config, encoder, STREAM.shape)
    rng = np.random.default_rng(seed)
    sampled = ShardConfig().sample_windows
    out = Pass(np.zeros((len(asked.cut), encoder.dim), np.float32), [])
    cuts, clock = [data.before(t) for t in cut_offs()], {"shard": 0.0, "learner": 0.0, "embed": 0.0}
    before = None
    for at, batch in micro_batches(data):
        began = time.perf_counter()
        position = np.array([at])
        decoded, bad = decoder.decode(TOPIC, position, position, [None], [batch])
        assert not bad
        touched = state.apply(decoded)
        n = min(sampled, len(touched.slots))
        windows = state.windows(np.sort(rng.choice(touched.slots, n, replace=False)))
        shard_done = time.perf_counter()
        learner.receive(windows)
        end = at + batch.num_rows
        while learner.updates < int(end * config.updates_per_record):
            if learner.learn() is None:
                break
        learnt = time.perf_counter()
        clock["shard"] += shard_done - began
        clock["learner"] += learnt - shard_done
        if end in cuts:
            cut = cuts.index(end)
            names = [data.names[i] for i in asked.customer[asked.cut == cut].tolist()]
            slots = np.array([state.index[name] for name in names])
            out.windows.append(anchored(state, slots))
            released = learner.released()
            vectors = embed(released, out.windows[-1])
            if before is not None:
                rotate(released, procrustes(vectors, embed(before, out.windows[-1])))
                vectors = embed(released, out.windows[-1])
            before = released
            out.vectors[asked.cut == cut] = vectors.numpy()
            clock["embed"] += time.perf_counter() - learnt
    out.updates, out.sequences, out.seconds = learner.updates, learner.sequences, clock
    return out


def one_thread() -> None:
    torch.set_num_threads(1)
