import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from PIL import Image
from rich.console import Console
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from benchmarks import cifar, quality_images
from benchmarks.cifar import Part
from benchmarks.image_pass import Setting, Size, work
from benchmarks.items import gap
from benchmarks.quality_images import PARTS, Found
from learning.config_images import TimmConfig

NAMES = tuple("abcdefghij")
TINY = Size(
    rows=60, choosing=20, tests=120, batch=8, updates_per_image=0.05, frames=4, buffer=16, recent=16,
    encoder=TimmConfig(dim=8, width=0.125, stem="half"),
    learner={"min_entities": 8, "warmup_updates": 1},
)  # fmt: skip


def jpeg(colour, rng) -> bytes:
    file = io.BytesIO()
    noisy = np.clip(colour + rng.normal(0, 25, (32, 32, 3)), 0, 255).astype(np.uint8)
    Image.fromarray(noisy).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """Classes are colours."""
    found, rng = tmp_path_factory.mktemp("cifar"), np.random.default_rng(0)
    colours = rng.uniform(30, 225, (len(NAMES), 3))
    for name, count in zip(cifar.FILES, (80, 120), strict=True):
        label = np.arange(count) % len(NAMES)
        table = {"jpeg": [jpeg(colours[i], rng) for i in label], "label": [NAMES[i] for i in label]}
        parquet.write_table(pa.table(table), found / name)
    return str(found)


@pytest.fixture(scope="module")
def setting(folder) -> Setting:
    return Setting(folder, TINY, "cpu")


@pytest.mark.parametrize("part", PARTS)
def test_each_part_goes_from_files_to_figures(part, setting, tmp_path, monkeypatch):
    jobs, shown = PARTS[part]
    out = io.StringIO()
    outcomes = [work(job, setting) for job in jobs([0]) if job.what != "lightly"]
    items = shown(Found(outcomes), Console(file=out, width=200))
    monkeypatch.setattr(quality_images, "OUT", tmp_path / "out.json")
    quality_images.written([part], items)
    assert json.loads((tmp_path / "out.json").read_text()) == items
    assert all(np.isfinite(item["value"]) for item in items)
    for outcome in outcomes:
        assert outcome.job.name in out.getvalue()
        assert quality_images.described(outcome)


def test_parts_that_were_not_asked_for_keep_their_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(quality_images, "OUT", tmp_path / "out.json")
    old, other, new = (
        {"name": name, "value": value, "unit": "share", "bar": None, "ok": None}
        for name, value in (("iid: x", 1.0), ("frames: x", 2.0), ("iid: x", 3.0))
    )
    quality_images.written(["iid", "frames"], [old, other])
    quality_images.written(["iid"], [new])
    assert json.loads((tmp_path / "out.json").read_text()) == [other, new]


def test_files_that_are_not_there_are_named(tmp_path):
    with pytest.raises(cifar.Missing, match=r"cifar10_train\.parquet.*AFRESH_DATA"):
        cifar.load(tmp_path, 10, 1, 10)


def test_what_is_chosen_on_is_not_streamed(folder):
    from pathlib import Path

    data = cifar.load(Path(folder), 10_000, 20, 50)
    assert [len(part.label) for part in data] == [60, 20, 50]
    rows = {part.tobytes() for part in data.train.pixels}
    assert not any(image.tobytes() in rows for image in data.choosing.pixels)
    assert data.train.label.tolist() == [i % 10 for i in range(60)]


def test_knn_is_a_weighted_vote_of_the_nearest():
    rng = np.random.default_rng(0)
    x, asked, label = rng.normal(size=(40, 3)), rng.normal(size=(15, 3)), rng.integers(0, 4, 40)
    expected = []
    for q in asked:
        cosine = [float(q @ v / np.linalg.norm(q) / np.linalg.norm(v)) for v in x]
        votes = np.zeros(4)
        for i in sorted(range(40), key=lambda i: -cosine[i])[:5]:
            votes[label[i]] += np.exp(cosine[i] / 0.1)
        expected.append(int(votes.argmax()))
    assert cifar.knn(x, label, asked, k=5).tolist() == expected


def test_the_regression_is_scikit_learns_of_the_strength_that_is_best_where_one_chooses():
    rng = np.random.default_rng(1)
    label, other = rng.integers(0, 3, 90), rng.integers(0, 3, 30)
    x, choosing = (np.eye(3)[n] + rng.normal(0, 1.0, (len(n), 3)) for n in (label, other))
    asked = rng.normal(size=(50, 3))
    scale = StandardScaler().fit(x)
    models = [
        LogisticRegression(C=c, max_iter=200).fit(scale.transform(x), label)
        for c in cifar.STRENGTHS
    ]
    best = max(models, key=lambda m: m.score(scale.transform(choosing), other))
    expected = best.predict(scale.transform(asked))
    assert cifar.linear(x, label, (choosing, other), asked).tolist() == expected.tolist()


def test_tasks_share_no_class_and_have_every_image():
    label = np.arange(100) % 10
    classes, tasks = cifar.by_task(label, np.random.default_rng(3))
    assert sorted(classes.ravel()) == list(range(10))
    assert sorted(np.concatenate(tasks)) == list(range(100))
    for pair, which in zip(classes, tasks, strict=True):
        assert set(label[which]) == set(pair)


def test_frames_move_by_a_pixel_at_most_and_stay_in_order():
    rng = np.random.default_rng(0)
    ramp = np.broadcast_to(np.arange(32, dtype=np.uint8)[:, None, None] * 4 + 60, (32, 32, 3))
    part = Part(np.stack([ramp, 255 - ramp]), np.array([3, 7]))
    found = cifar.frames(part, 5, rng)
    assert found.label.tolist() == [3] * 5 + [7] * 5
    first = found.pixels[:5, 16].astype(float).mean((1, 2))
    assert np.abs(np.diff(first)).max() <= 4 + 0.035 * 200
    assert np.ptp(first) > 0


@pytest.mark.parametrize("kind", cifar.COPIES)
def test_copies_differ_from_what_they_copy_but_little(kind):
    rng = np.random.default_rng(0)
    smooth = np.asarray(
        Image.fromarray(rng.integers(60, 180, (4, 4, 3), np.uint8)).resize((32, 32))
    )
    pixels = np.stack([smooth, smooth[::-1]])
    copies = cifar.COPIES[kind](pixels, rng)
    away = np.abs(copies.astype(float) - pixels).mean()
    assert copies.shape == pixels.shape and copies.dtype == np.uint8
    assert 0 < away < 0.26 * pixels.mean()


def test_a_gap_is_paired_and_its_error_of_seeds_and_images():
    rng = np.random.default_rng(0)
    ours = [rng.random(200) < p for p in (0.6, 0.7, 0.8)]
    others = [rng.random(200) < 0.5]
    each = [(a.mean() - others[0].mean()) for a in ours]
    by_image = np.mean(ours, axis=0) - others[0]
    value, error = gap(ours, others)
    assert value == pytest.approx(np.mean(each))
    of_seeds, of_images = np.std(each, ddof=1) / 3**0.5, by_image.std(ddof=1) / 200**0.5
    assert error == pytest.approx((of_seeds**2 + of_images**2) ** 0.5)
