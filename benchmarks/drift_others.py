"""alibi-detect's online MMD and Evidently's drift of embeddings, in an environment of their own:
`python drift_others.py alibi|evidently IN OUT`.

Nothing of afresh is imported here. IN is an .npz: for each case k `reference_k` and `stream_k` [N, D], vectors to draw
from; runs [K] of each case; most, batches of a run; target, batches to a false alarm. OUT is JSON: `batches` and
`alarms`, by case and run, and µs of a sample."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

REFERENCE, BATCH = 2048, 64
WINDOW = 20  # of alibi-detect's test
BOOTSTRAPS = 5_000  # it asks for ten times the target at least
CURRENT = 10  # batches that Evidently is given at a time: what fills our window


def drawn(reference: Any, stream: Any, run: int, most: int) -> tuple[Any, Any]:
    """The same for every detector: a reference [REFERENCE, D], and which rows of the stream come, [most, BATCH]."""
    rng = np.random.default_rng([1, run])
    chosen = reference[rng.integers(0, len(reference), REFERENCE)]
    return chosen, rng.integers(0, len(stream), (most, BATCH))


class Alibi:
    """One window of each batch. With all of them the target would be 64 times as many samples, and the bootstraps,
    ten times the target, more than there is time for."""

    samples = 1  # of a batch
    references = 2  # runs take turns; to calibrate takes a minute, and their errors are small beside its window's

    def __init__(self, reference: Any, target: int, seed: int) -> None:
        import torch
        from alibi_detect.cd import MMDDriftOnline

        torch.set_num_threads(1)
        torch.manual_seed(seed)
        self._detector = MMDDriftOnline(
            reference, ert=target, window_size=WINDOW, backend="pytorch",
            n_bootstraps=BOOTSTRAPS, device="cpu", verbose=False,
        )  # fmt: skip

    def first(self, stream: Any, rows: Any) -> tuple[int, bool]:
        """Batches to the first alarm; False: none came."""
        self._detector.reset_state()
        for n, row in enumerate(rows[:, 0], 1):
            if self._detector.predict(stream[row])["data"]["is_drift"]:
                return n, True
        return len(rows), False


class Evidently:
    """Its default, a classifier; without the picture that its report draws beside it."""

    samples = BATCH
    references = 1 << 30  # another one in each run

    def __init__(self, reference: Any, target: int, seed: int) -> None:
        import pandas as pd
        from evidently.legacy.metrics.data_drift.embedding_drift_methods import model

        del target, seed  # it knows no rate of false alarms
        self._frame, self._before = pd.DataFrame, pd.DataFrame(reference)
        self._method = model(bootstrap=len(reference) < 1000)

    def first(self, stream: Any, rows: Any) -> tuple[int, bool]:
        """Batches to the first alarm; False: none came."""
        for n in range(CURRENT, len(rows) + 1, CURRENT):
            now = self._frame(stream[rows[n - CURRENT : n].ravel()])
            if self._method(now, self._before.copy())[1]:
                return n, True
        return len(rows), False


def main() -> None:
    what, given, target = sys.argv[1], np.load(sys.argv[2]), Path(sys.argv[3])
    kinds: dict[str, type[Alibi] | type[Evidently]] = {"alibi": Alibi, "evidently": Evidently}
    kind, most = kinds[what], int(given["most"])
    detectors: dict[tuple[bytes, int], Any] = {}  # cases that share a reference share these
    waited, alarms, seconds, samples = [], [], 0.0, 0
    for case, runs in enumerate(given["runs"].tolist()):
        reference, stream = given[f"reference_{case}"], given[f"stream_{case}"]
        found = []
        for run in range(runs):
            at = (reference.tobytes(), run % kind.references)
            if at not in detectors:
                chosen, _ = drawn(reference, stream, at[1], most)
                detectors[at] = kind(chosen, int(given["target"]), at[1])
            began = time.process_time()
            found.append(detectors[at].first(stream, drawn(reference, stream, run, most)[1]))
            seconds += time.process_time() - began
            samples += found[-1][0] * kind.samples
        waited.append([n for n, _ in found])
        alarms.append([alarm for _, alarm in found])
    us = seconds / samples * 1e6
    target.write_text(json.dumps({"batches": waited, "alarms": alarms, "us": us}))


if __name__ == "__main__":
    main()
