"""19 exact features of (sender, candidate) at an edge of the stream, of what lies strictly before it."""

import numpy as np

from benchmarks.college import NONE, WEEK_S, College, Contacts
from schemas.records import F32, I64, Bool

HOUR_S, DAY_S = 3_600, 86_400
FEATURES = (
    "age of the last message to", "age of the last message from", "wrote to", "was written to by",
    "messages to", "messages from", "age of the last contact",
    "received in 3 hours", "received in a day", "received in a week",
    "sent in 3 hours", "sent in a day", "sent in a week", "received", "sent",
    "age of the last received", "age of the last sent", "sender's latest contact", "were in contact",
)  # fmt: skip
NO_AGE = 1.3  # above any real one: the log of the whole stream's seconds is 16.6


class Known(Contacts):
    """All that the features read; a candidate costs the same however long the stream was."""

    windows_s = (3 * HOUR_S, DAY_S, WEEK_S)

    def __init__(self, college: College, stale: int = 0) -> None:
        super().__init__(college, stale)
        n = college.nodes
        self.sent = np.zeros((len(self.windows_s), n), np.int64)
        self.count = np.zeros((n, n), np.int32)
        self.last_received, self.last_sent = np.full(n, NONE), np.full(n, NONE)
        self.all_received, self.all_sent = np.zeros(n, np.int64), np.zeros(n, np.int64)

    def _comes(self, src: np.int64, dst: np.int64, time_s: np.int64) -> None:
        super()._comes(src, dst, time_s)
        self.sent[:, src] += 1
        self.count[src, dst] += 1
        self.last_received[dst] = self.last_sent[src] = time_s
        self.all_received[dst] += 1
        self.all_sent[src] += 1

    def _leaves(self, window: int, src: np.int64, dst: np.int64) -> None:
        super()._leaves(window, src, dst)
        self.sent[window, src] -= 1

    def features(self, sender: int, nodes: I64, now: int) -> F32:
        """[C] candidates of one sender -> [C, 19]"""
        there, back = self.last_to[sender, nodes], self.last_to[nodes, sender]
        last = np.maximum(there, back)
        latest = max(self.last_received[sender], self.last_sent[sender])
        met = last != NONE
        counts = (
            self.count[sender, nodes], self.count[nodes, sender],
            *self.received[:, nodes], *self.sent[:, nodes],
            self.all_received[nodes], self.all_sent[nodes],
        )  # fmt: skip
        times = np.stack([there, back, last, self.last_received[nodes], self.last_sent[nodes]])
        log, age = np.log1p(np.stack(counts), dtype=np.float32), ages(times, now)
        flags: list[Bool] = [there != NONE, back != NONE, met & (last == latest), met]
        columns = [age[:2], flags[:2], log[:2], age[2:3], log[2:], age[3:], flags[2:]]
        return np.concatenate(columns, dtype=np.float32).T


def ages(time_s: I64, now: int) -> F32:
    """log(1 + seconds) / 16, subtracted as integers: float32 would lose 128 s."""
    since = now - np.where(time_s == NONE, now, time_s)
    return np.where(time_s == NONE, NO_AGE, np.log1p(since) / 16).astype(np.float32)


def features(college: College, edge: I64, nodes: I64, stale: int = 0) -> F32:
    """Of rows of candidates, nodes [M, C], at the rising edges [M], as their senders know them. [M, C, 19]

    Rows that begin with -1 are left zero. With `stale`, what is known ends so many edges earlier."""
    known = Known(college, stale)
    out = np.zeros((*nodes.shape, len(FEATURES)), np.float32)
    for m, i in enumerate(edge.tolist()):
        if nodes[m, 0] >= 0:
            known.move(i)
            out[m] = known.features(int(college.src[i]), nodes[m], int(college.time_s[i]))
    return out
