"""What vectors of images know, part by part: all of them, or those that are named.

`make quality-images AFRESH_DATA=folder ARGS="iid frames"` prints tables and writes build/quality-images.json.

iid: CIFAR-10 in random order, one pass. increment: two classes after the other. frames: each image as many frames, one
after the other. objectives: all of them, as in iid. duplicates: near-copies found by their vectors. Test images are
asked about by their 20 nearest of the streamed ones, and by logistic regression on these. Settings were chosen for
VICReg in random order on training images that are not streamed."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks import cifar
from benchmarks.apart import PROCESSES, in_processes
from benchmarks.cifar import Right
from benchmarks.image_pass import FULL, SMALL, Job, Outcome, Setting, work
from benchmarks.items import Item, gap, shown, spread
from benchmarks.reference import BUILD
from learning.config import FITTING, ObjectiveConfig, VicregConfig
from learning.config_images import CassleConfig, SscdConfig

SEEDS = (0, 1, 2)
OUT = BUILD / "quality-images.json"
PIXELS, RANDOM, OURS = "raw pixels", "the same encoder, untrained", "vicreg"
DEEP = "vicreg, features before the last layer"
REFERENCE = "lightly's VICReg, features"
LEARNT = {
    "no replay": {"replay": False, "distil": False},
    "no replay, cassle": {"replay": False, "distil": True},
    "replay": {"replay": True, "distil": False},
    "replay, cassle": {"replay": True, "distil": True},
}
POLICIES = ("fifo", "minred", "stratified")


def objectives() -> dict[str, ObjectiveConfig]:
    """All that fit images, as they are by default; what only stands beside another is not among them."""
    fitting = [kind() for kind in FITTING["image"][1] if kind is not CassleConfig]
    return {str(type(o).__struct_config__.tag): o for o in fitting}  # type: ignore[misc]


class Found:
    """What jobs have brought so far, by name."""

    def __init__(self, outcomes: Iterable[Outcome]) -> None:
        self._of: dict[tuple[str, str], list[Outcome]] = {}
        for outcome in sorted(outcomes, key=lambda o: o.job.seed):
            self._of.setdefault((outcome.job.what, outcome.job.name), []).append(outcome)

    def outcomes(self, what: str, name: str) -> list[Outcome]:
        """By seed; those that could not be had are left out."""
        return [o for o in self._of.get((what, name), []) if not isinstance(o.found, str)]

    def rights(self, what: str, name: str, which: int = 0) -> list[Right]:
        return [o.found[which] for o in self.outcomes(what, name)]

    def names(self, what: str) -> list[str]:
        return [name for kind, name in self._of if kind == what]


# -- parts ------------------------------------------------------------------------------------------

Rows = dict[str, tuple[list[Right], float]]
"""By name what each seed names rightly, and its CPU time."""


def _base(seeds: Sequence[int]) -> list[Job]:
    random = [Job("iid", RANDOM, seed, {"objective": None}) for seed in seeds]
    return [Job("pixels", PIXELS, seeds[0], {}), *random]


def _iid_jobs(seeds: Sequence[int]) -> list[Job]:
    jobs = _base(seeds)
    for seed in seeds:
        jobs.append(Job("iid", OURS, seed, {"objective": VicregConfig(), "deep": True}))
        jobs.append(Job("lightly", REFERENCE, seed, {}))
    return jobs


def _objectives_jobs(seeds: Sequence[int]) -> list[Job]:
    jobs = [j for j in _iid_jobs(seeds) if j.what != "lightly"]
    others = {name: o for name, o in objectives().items() if name != OURS}
    return jobs + [
        Job("iid", name, seed, {"objective": o}) for seed in seeds for name, o in others.items()
    ]


def _increment_jobs(seeds: Sequence[int]) -> list[Job]:
    return [Job("increment", name, seed, how) for seed in seeds for name, how in LEARNT.items()]


def _frames_jobs(seeds: Sequence[int]) -> list[Job]:
    each = [Job("frames", name, seed, {"policy": name}) for seed in seeds for name in POLICIES]
    return _base(seeds) + each


def _duplicates_jobs(seeds: Sequence[int]) -> list[Job]:
    kinds = {RANDOM: None, "vicreg": VicregConfig(), "sscd": SscdConfig()}
    return [
        Job("duplicates", name, seed, {"objective": o}) for seed in seeds for name, o in kinds.items()
    ]  # fmt: skip


def _rows(found: Found, *kinds: str) -> Rows:
    """Accuracies that there are, what is not learnt first."""
    out: Rows = {}
    for what, name in [
        ("pixels", PIXELS),
        ("iid", RANDOM),
        *((kind, name) for kind in kinds for name in found.names(kind) if name != RANDOM),
    ]:
        if outcomes := found.outcomes(what, name):
            seconds = float(np.mean([o.seconds for o in outcomes]))
            out[name] = found.rights(what, name), seconds
    return out


def _accuracies(title: str, rows: Rows) -> Table:
    table = Table("", "kNN", "linear", "kNN over untrained / pixels", "linear over …", "CPU s")
    table.title = title
    for name, (rights, seconds) in rows.items():
        cells = [
            spread([float(getattr(r, probe).mean()) for r in rights]) for probe in Right._fields
        ]
        for probe in Right._fields:
            both = [_gap(rows, name, other, probe) for other in (RANDOM, PIXELS)]
            texts = [f"{value:+.3f} ± {2 * error:.3f}" for value, error in both]
            cells.append("" if name in (RANDOM, PIXELS) else " / ".join(texts))
        table.add_row(name, *cells, f"{seconds:.0f}")
    return table


def _gap(rows: Rows, name: str, other: str, probe: str) -> tuple[float, float]:
    ours, others = ([getattr(r, probe) for r in rows[n][0]] for n in (name, other))
    return gap(ours, others)


def _items(part: str, rows: Rows, bars: Iterable[tuple[str, str]]) -> list[Item]:
    items = []
    for name, (rights, _) in rows.items():
        for probe in Right._fields:
            mean = float(np.mean([getattr(r, probe).mean() for r in rights]))
            items.append(shown(f"{part}: {probe} accuracy, {name}", mean, "share"))
    for name, other in bars:
        if name in rows and other in rows:
            for probe in Right._fields:
                value, error = _gap(rows, name, other, probe)
                text = f"{part}: {probe}, {name} over {other}, ± {2 * error:.3f}"
                ok = value > 2 * error
                items.append(Item(name=text, value=value, unit="share", bar=0.0, ok=ok))
    return items


def _iid(found: Found, console: Console) -> list[Item]:
    rows = {n: row for n, row in _rows(found, "iid", "lightly").items() if n not in _OTHERS}
    rows[DEEP] = found.rights("iid", OURS, 1), rows[OURS][1]
    console.print(_accuracies("CIFAR-10 in random order", rows))
    return _items("iid", rows, [(OURS, PIXELS), (OURS, RANDOM), (DEEP, REFERENCE)])


def _objectives(found: Found, console: Console) -> list[Item]:
    rows = _rows(found, "iid")
    console.print(_accuracies("All objectives in random order", rows))
    items = _items("objectives", rows, [(n, o) for n in objectives() for o in (RANDOM, PIXELS)])
    for name in objectives():
        mine = [i for i in items if i["bar"] is not None and f", {name} over" in i["name"]]
        lost = [i["name"].partition(": ")[2] for i in mine if not i["ok"]]
        word = f"not above by {', '.join(lost)}" if lost else "measured: above both by both"
        console.print(f"{name:>14}  {word}")
    if not torch.cuda.is_available():
        console.print("This is no ranking: for one, longer runs on a GPU are needed (FULL=1).")
    return items


def _increment(found: Found, console: Console) -> list[Item]:
    keys = ("linear", "linear_forgetting", "knn", "knn_forgetting")
    table = Table("", *(k.replace("_", ", ") for k in keys), "CPU s")
    table.title = "Two classes after the other: average accuracy in the end, and forgetting"
    items = []
    of = {name: found.outcomes("increment", name) for name in LEARNT}
    for name, outcomes in of.items():
        values = {k: [float(o.found[k]) for o in outcomes] for k in keys}
        seconds = np.mean([o.seconds for o in outcomes])
        table.add_row(name, *(spread(values[k]) for k in keys), f"{seconds:.0f}")
        items += [
            shown(f"increment: {k}, {name}", float(np.mean(values[k])), "share") for k in keys
        ]
    for name, other in (("replay", "no replay"), ("no replay, cassle", "no replay"),
                        ("replay, cassle", "replay")):  # fmt: skip
        ours, others = (np.array([o.found["linear"] for o in of[n]]) for n in (name, other))
        value, error = float((ours - others).mean()), _error(ours - others)
        text = f"increment: linear, {name} over {other}, ± {2 * error:.3f} over seeds"
        items.append(Item(name=text, value=value, unit="share", bar=0.0, ok=value > 2 * error))
    console.print(table)
    return items


def _error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0


def _frames(found: Found, console: Console) -> list[Item]:
    rows = _rows(found, "frames")
    console.print(_accuracies("Frames of one image after the other, a small replay", rows))
    return _items("frames", rows, [("minred", "fifo"), ("minred", RANDOM)])


def _duplicates(found: Found, console: Console) -> list[Item]:
    items = []
    for name in found.names("duplicates"):
        of = [o.found for o in found.outcomes("duplicates", name)]
        table = Table("threshold", "precision", *(f"recall, {k}" for k in cifar.COPIES))
        table.title = f"Near-copies by vectors: {name}"
        for threshold in of[0]:
            precision = [float(o[threshold]["precision"]) for o in of]
            recall = {k: [float(o[threshold]["recall"][k]) for o in of] for k in cifar.COPIES}
            table.add_row(threshold, spread(precision), *map(spread, recall.values()))
            text = f"duplicates: {name}, threshold {threshold}"
            items.append(shown(f"{text}, precision", float(np.mean(precision)), "share"))
            items += [
                shown(f"{text}, recall of {k}", float(np.mean(v)), "share") for k, v in recall.items()
            ]  # fmt: skip
        console.print(table)
    return items


_OTHERS = set(objectives()) - {OURS}
Jobs = Callable[[Sequence[int]], list[Job]]
PARTS: dict[str, tuple[Jobs, Callable[[Found, Console], list[Item]]]] = {
    "iid": (_iid_jobs, _iid),
    "increment": (_increment_jobs, _increment),
    "frames": (_frames_jobs, _frames),
    "objectives": (_objectives_jobs, _objectives),
    "duplicates": (_duplicates_jobs, _duplicates),
}


def run(jobs: Sequence[Job], setting: Setting, console: Console) -> list[Outcome]:
    """Two at a time; on a GPU one by one."""
    calls = [partial(work, job, setting) for job in jobs]
    return in_processes(calls, 1 if setting.device != "cpu" else PROCESSES, console, described)


def described(outcome: Outcome) -> str:
    job, found = outcome.job, outcome.found
    if isinstance(found, str):
        text = f"could not be had: {found}"
    elif isinstance(found, tuple):
        text = f"kNN {found[0].knn.mean():.3f}, linear {found[0].linear.mean():.3f}"
    else:
        text = ", ".join(f"{k} {v:.3f}" for k, v in found.items() if isinstance(v, float))
    return f"{job.what}: {job.name}, seed {job.seed}: {text} ({outcome.seconds:.0f} s)"


def written(parts: Sequence[str], items: Sequence[Item]) -> None:
    """Beside what other calls have measured of other parts."""
    before: list[Item] = json.loads(OUT.read_text()) if OUT.exists() else []
    kept = [item for item in before if item["name"].partition(":")[0] not in parts]
    OUT.write_text(json.dumps([*kept, *items], indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(prog="make quality-images")
    parser.add_argument("part", nargs="*", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="default: 0 1 2")
    parser.add_argument("--full", action="store_true", help="all of CIFAR-10, on a GPU (FULL=1)")
    asked = parser.parse_args()
    parts = asked.part or list(PARTS)
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"there is no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    if asked.full and not torch.cuda.is_available():
        sys.exit("FULL=1 needs a GPU, and torch sees none here; without it the run is CPU-sized.")
    folder = os.environ.get("AFRESH_DATA")
    if lacking := [f for f in cifar.FILES if not folder or not (Path(folder) / f).exists()]:
        where = f"AFRESH_DATA is {folder!r}" if folder else "AFRESH_DATA is not set"
        needs = f"it must name the folder with {lacking[0]} (columns jpeg, label)"
        sys.exit(f"{where}; {needs}: make quality-images AFRESH_DATA=folder")
    setting = Setting(str(folder), FULL if asked.full else SMALL, "cuda" if asked.full else "cpu")
    console = Console(width=None if sys.stdout.isatty() else 140)
    BUILD.mkdir(exist_ok=True)
    jobs: dict[tuple[str, str, int], Job] = {}
    for part in parts:
        for job in PARTS[part][0](asked.seeds):
            jobs.setdefault((job.what, job.name, job.seed), job)
    found = Found(run(list(jobs.values()), setting, console))
    items: list[Item] = []
    for part in parts:
        items += PARTS[part][1](found, console)
    for item in items:
        if item["bar"] is not None:
            word = "[green]yes[/green]" if item["ok"] else "[red]no[/red]"
            console.print(f"{word:>20}  {item['value']:+.3f}  {item['name']}")
    written(parts, items)


if __name__ == "__main__":
    main()
