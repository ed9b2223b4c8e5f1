"""One pass of a stream of images through the learner, and the jobs that `make quality-images` runs.

A job is one learner in a process of its own, on one thread. Each image is presented as often as `Size` says, whatever
the objective: compute is fixed. Vectors are the released ones: unit length, of the averaged weights."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch

from actors.duplicates import Duplicates
from benchmarks import cifar, image_reference
from benchmarks.cifar import Cifar, Part, Right
from benchmarks.reference import Missing
from learning.config import (
    OF_IMAGES,
    LearnerConfig,
    ObjectiveConfig,
    ReplayConfig,
    VicregConfig,
)
from learning.config_images import CassleConfig, ImageViews, TimmConfig
from learning.contract import View
from learning.image_learner import ImageLearner
from learning.student import embed
from schemas.records import F32, I64, U8

RECEIVED = 256  # images at a time


SLIM = TimmConfig(width=0.25, stem="half", size=24)
MILD = ImageViews(
    scale=(0.4, 1.0), brightness=0.2, contrast=0.2, saturation=0.1, hue=0.02, grey=0.0
)  # few updates learn more from looks that differ less


@dataclass(frozen=True)
class Size:
    """How much is streamed and learnt."""

    rows: int = 8_000
    choosing: int = (
        1_000  # other training rows, on which settings and a regression's strength are chosen
    )
    tests: int = 5_000
    batch: int = 128
    updates_per_image: float = 0.05  # presentations of an image: this times batch
    frames: int = 16  # of each image, where the stream is of frames,
    buffer: int = 256  # and images that its replay holds
    recent: int = 256  # images that are there where nothing is replayed
    encoder: TimmConfig = SLIM
    views: ImageViews = MILD
    learner: dict[str, Any] = field(default_factory=dict)  # changes of LearnerConfig

    @property
    def updates(self) -> int:
        return int(self.rows * self.updates_per_image)

    def load(self, folder: str) -> Cifar:
        return cifar.load(Path(folder), self.rows, self.choosing, self.tests)


SMALL = Size()
FULL = Size(
    rows=49_000, tests=10_000, batch=256, updates_per_image=0.2, frames=16, buffer=2_048, recent=512,
    encoder=TimmConfig(dim=128, backbone="resnet18", stem="small"), views=ImageViews(),
)  # fmt: skip


class Job(NamedTuple):
    """`what` names a function of DOING; `options` are its arguments."""

    what: str
    name: str
    seed: int
    options: dict[str, Any]


class Setting(NamedTuple):
    """What every job of a run has in common."""

    folder: str
    size: Size
    device: str


class Outcome(NamedTuple):
    job: Job
    found: Any
    seconds: float  # of CPU, a reference's process included


def work(job: Job, setting: Setting) -> Outcome:
    """In a process of its own."""
    torch.set_num_threads(1)
    began = sum(os.times()[:4])
    data = setting.size.load(setting.folder)
    found = DOING[job.what](data, setting, job.seed, **job.options)
    return Outcome(job, found, sum(os.times()[:4]) - began)


def made(
    setting: Setting, seed: int, objectives: Sequence[ObjectiveConfig], replay: dict[str, Any]
) -> ImageLearner:
    """A learner as a stream of images has it by default, but for what a run fixes. Test images are held out
    already."""
    size, kept = setting.size, OF_IMAGES["replay"]
    assert isinstance(kept, dict)
    own = {k: v for k, v in OF_IMAGES.items() if k != "replay"}
    config = msgspec.convert(
        own | {"seed": seed, "batch_entities": size.batch, "held_out_share": 0.0}, LearnerConfig
    )
    changes = size.learner | {
        "objective": tuple(objectives),
        "replay": ReplayConfig(**(kept | replay)),
        "updates_per_record": size.updates_per_image,
        "views": size.views,
    }
    config = msgspec.structs.replace(config, **changes)
    return ImageLearner(config, size.encoder, cifar.SHAPE, device=setting.device)


def bytes_of(images: int, dim: int) -> int:
    """`learner.replay.max_bytes` for so many images."""
    return images * (cifar.SHAPE.pixels + 2 * dim + 80)


def stream(learner: ImageLearner, part: Part, first: int = 0, at_a_time: int = RECEIVED) -> None:
    """Images come; after each few the updates that are due are made."""
    for at in range(0, len(part.label), at_a_time):
        some = part.take(np.arange(at, min(at + at_a_time, len(part.label))))
        learner.receive(cifar.windows(some, first + at))
        while learner.updates < int(learner.records * learner.config.updates_per_record):
            if learner.learn() is None:
                break


def vectors(learner: ImageLearner, pixels: U8) -> F32:
    """[N, D]"""
    some = Part(pixels, np.zeros(len(pixels), np.int64))
    return np.asarray(embed(learner.ema, cifar.windows(some)).cpu().numpy(), np.float32)


@torch.no_grad()
def features(learner: ImageLearner, pixels: U8) -> F32:
    """[N, F] before the last layer, as references are probed."""
    encoder, out = learner.ema.eval(), []
    for at in range(0, len(pixels), 256):
        view: View = {"pixels": torch.from_numpy(pixels[at : at + 256]).to(learner.device)}
        out.append(encoder(view).extra["features"].float().cpu().numpy())
    return np.concatenate(out)


def probed(learner: ImageLearner, data: Cifar) -> Right:
    return cifar.probed(data, (vectors(learner, part.pixels) for part in data))


# -- what jobs do -----------------------------------------------------------------------------------


def iid(
    data: Cifar, setting: Setting, seed: int, objective: ObjectiveConfig | None, deep: bool = False
) -> tuple[Right, ...]:
    """In random order; without an objective: an encoder as it was drawn. `deep`: its features, too."""
    learner = made(setting, seed, [objective or VicregConfig()], {})
    if objective is not None:
        order = np.random.default_rng(seed).permutation(len(data.train.label))
        stream(learner, data.train.take(order))
    own = (probed(learner, data),)
    if not deep:
        return own
    return *own, cifar.probed(data, (features(learner, part.pixels) for part in data))


def pixels(data: Cifar, _setting: Setting, _seed: int) -> tuple[Right]:
    return (cifar.probed(data, (cifar.raw(part.pixels) for part in data)),)


def lightly(data: Cifar, setting: Setting, seed: int) -> tuple[Right] | str:
    """Its VICReg with its BatchNorm, as many presentations of the same images; or why there is none."""
    size = setting.size
    rows = image_reference.columns(size.encoder, size.views, data.train.pixels)
    try:
        found, _ = image_reference.trained(
            data, rows, size.updates, size.batch, seed, setting.device
        )
    except Missing as why:
        return str(why)
    return (found,)


def increment(
    data: Cifar, setting: Setting, seed: int, replay: bool, distil: bool
) -> dict[str, float]:
    """Two classes after the other. After each task probes of all classes ask about each task's test images.

    Average accuracy and forgetting as in CaSSLe, Fini et al. 2022, arXiv:2112.04215, section 5.1."""
    size, rng = setting.size, np.random.default_rng(seed)
    few = {"policy": "fifo", "max_bytes": bytes_of(size.recent, size.encoder.dim)}
    objectives: list[ObjectiveConfig] = [VicregConfig()]
    if distil:
        objectives.append(CassleConfig())
    learner = made(setting, seed, objectives, {} if replay else few)
    classes, tasks = cifar.by_task(data.train.label, rng)
    right, first = np.zeros((2, cifar.TASKS, cifar.TASKS)), 0
    for at, which in enumerate(tasks):
        stream(learner, data.train.take(which), first)
        first += len(which)
        learner.mark_released()
        found = probed(learner, data)
        for i, pair in enumerate(classes):
            asked = np.isin(data.test.label, pair)
            right[:, at, i] = found.knn[asked].mean(), found.linear[asked].mean()
    last, best = right[:, -1], right[:, :-1, :-1].max(1)
    forgot = (best - last[:, :-1]).mean(1)
    return {
        "knn": last[0].mean(), "knn_forgetting": forgot[0],
        "linear": last[1].mean(), "linear_forgetting": forgot[1],
    }  # fmt: skip


def frames(data: Cifar, setting: Setting, seed: int, policy: str) -> tuple[Right]:
    """Frames of fewer images, one image after the other, so that as many come as elsewhere."""
    size, rng = setting.size, np.random.default_rng(seed)
    room = {"policy": policy, "max_bytes": bytes_of(size.buffer, size.encoder.dim)}
    learner = made(setting, seed, [VicregConfig()], room)
    of = rng.permutation(len(data.train.label))[: max(2, size.rows // size.frames)]
    # Few at a time: as many as the replay holds would push out all of it, whatever the policy.
    few = max(1, size.buffer // 16)
    stream(learner, cifar.frames(data.train.take(of), size.frames, rng), at_a_time=few)
    return (probed(learner, data),)


THRESHOLDS = (0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7)


def duplicates(
    data: Cifar, setting: Setting, seed: int, objective: ObjectiveConfig | None
) -> dict[str, Any]:
    """Test images come once; of a fifth a near-copy comes later. By threshold: precision, and recall of each kind."""
    learner, rng = (
        made(setting, seed, [objective or VicregConfig()], {}),
        np.random.default_rng(seed),
    )
    if objective is not None:
        stream(learner, data.train.take(rng.permutation(len(data.train.label))))
    once = data.test.pixels[: 4 * len(data.test.pixels) // 5]
    copied = rng.permutation(len(once))[: max(len(cifar.COPIES), len(once) // 5)]
    kind: I64 = np.arange(len(copied)) % len(cifar.COPIES)
    again = np.empty_like(once[copied])
    for i, change in enumerate(cifar.COPIES.values()):
        again[kind == i] = change(once[copied[kind == i]], rng)
    z = vectors(learner, np.concatenate([once, again]))
    kinds = np.concatenate([np.full(len(once), -1), kind])
    # Originals first, in random order, and copies anywhere behind theirs.
    at = rng.permutation(len(once)).astype(np.float64)
    behind = at[copied] + rng.random(len(copied)) * (len(once) - at[copied])
    order = np.argsort(np.concatenate([at, behind]), kind="stable")
    z, kinds = z[order], kinds[order]
    out: dict[str, Any] = {}
    for threshold in THRESHOLDS:
        judge, found = Duplicates(threshold), np.zeros(len(z), np.bool_)
        for first in range(0, len(z), 64):
            some = z[first : first + 64]
            found[first : first + 64] = judge.judge(some, np.zeros_like(some))[0]
        hits = int((found & (kinds >= 0)).sum())
        recall = {name: float(found[kinds == i].mean()) for i, name in enumerate(cifar.COPIES)}
        out[f"{threshold:g}"] = {"precision": hits / max(1, int(found.sum())), "recall": recall}
    return out


DOING: dict[str, Any] = {
    "iid": iid,
    "pixels": pixels,
    "lightly": lightly,
    "increment": increment,
    "frames": frames,
    "duplicates": duplicates,
}
