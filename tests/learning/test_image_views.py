import colorsys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from learning.config_images import ImageViews
from learning.contract import Batch, Needs
from learning.kinds.images import Images, Looks, boxes, draw, hidden, looked
from learning.pixels import (
    blurred,
    cropped,
    floats,
    hue_shifted,
    jittered,
    luma,
    salient,
    solarised,
)
from schemas.errors import SettingsError
from tests.learning.images import SIDE, noise, textures, windows_of

NOTHING = ImageViews(
    scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0, jitter=0.0, grey=0.0, blur=0.0, solarise=0.0
)
ALL = Needs(slices=2, small=3, patches=0.5, window=True, mixed=True)
CPU = torch.device("cpu")
DEFAULT = ImageViews()


def pictures(n: int, side: int = SIDE, seed: int = 0) -> torch.Tensor:
    return floats(torch.from_numpy(noise(np.random.default_rng(seed), n, side)))


def views(config: ImageViews = DEFAULT, needs: Needs = ALL, n: int = 6, seed: int = 0) -> Batch:
    windows = windows_of(noise(np.random.default_rng(1), n), label=np.arange(n))
    kind = Images(config, SIDE, 4, 4, CPU)
    return kind.views(windows, needs, np.random.default_rng(seed), augment=True)


def test_looks_are_the_images_where_all_strengths_are_0():
    batch = views(NOTHING)
    plain = batch.views["window"]["image"]
    pixels = torch.from_numpy(noise(np.random.default_rng(1), 6)).permute(0, 3, 1, 2)
    assert torch.equal(plain, pixels.float() / 255)
    assert torch.equal(batch.views["slices"]["image"], plain.repeat_interleave(2, 0))


def test_what_a_batch_holds():
    batch = views()
    shapes = {name: tuple(view["image"].shape) for name, view in batch.views.items()}
    assert shapes == {
        "slices": (12, 3, 16, 16),
        "small": (18, 3, 8, 8),
        "masked": (12, 3, 16, 16),
        "window": (6, 3, 16, 16),
        "mixed": (6, 3, 16, 16),
    }
    assert batch.views["masked"]["image"] is batch.views["slices"]["image"]
    assert batch.index["owner_M"].tolist() == np.repeat(range(6), 2).tolist()
    assert batch.index["small_owner_M"].tolist() == np.repeat(range(6), 3).tolist()
    assert batch.pairs["positives"].tolist() == [[0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9, 11]]
    assert batch.index["label_B"].tolist() == list(range(6))
    for view in batch.views.values():
        assert view["image"].min() >= 0 and view["image"].max() <= 1


def test_only_what_is_needed_is_cut():
    assert views(needs=Needs(window=True)).views.keys() == {"window"}
    assert views(needs=Needs(slices=1)).views.keys() == {"slices"}


def test_the_same_generator_draws_the_same_looks_and_another_others():
    same, again, other = (views(seed=s).views["slices"]["image"] for s in (0, 0, 1))
    assert torch.equal(same, again)
    assert not torch.equal(same, other)


def test_looks_at_one_image_differ():
    one, two = views().views["slices"]["image"].unflatten(0, (6, 2)).unbind(1)
    assert ((one - two).abs().flatten(1).amax(1) > 0.05).all()


@given(st.integers(0, 1000), st.integers(2, 40))
@settings(max_examples=30, deadline=None)
def test_crops_lie_within_the_image_and_cover_the_share_asked_for(seed, side):
    u = np.random.default_rng(seed).random((200, 4), np.float32)
    u[0], u[1] = 0.0, np.nextafter(np.float32(1), np.float32(0))
    top, left, height, width = boxes((0.2, 0.6), (0.75, 1.3333), side, u).T
    assert (np.array([top, left]) >= 0).all() and (np.array([height, width]) >= 1).all()
    assert (top + height <= side).all() and (left + width <= side).all()
    share = height * width / side**2
    rounding = (height + width) / side**2
    assert (share >= 0.2 - rounding).all() and (share <= 0.6 + rounding).all()


def test_crops_are_those_of_torch_with_antialias():
    rng = np.random.default_rng(0)
    x = pictures(20, 24)
    box = torch.from_numpy(boxes((0.05, 1.0), (0.5, 2.0), 24, rng.random((20, 4), np.float32)))
    flip = torch.arange(20) % 2 == 0
    for size in (8, 24, 40):
        got = cropped(x, box, flip, size)
        for i, (top, left, height, width) in enumerate(box.tolist()):
            part = x[i : i + 1, :, top : top + height, left : left + width]
            one = F.interpolate(part, (size, size), mode="bilinear", antialias=True)[0]
            assert torch.allclose(got[i], one.flip(2) if flip[i] else one, atol=1e-5)


def test_hue_is_turned_as_colorsys_turns_it():
    x, turns = pictures(8, 5), torch.linspace(-0.5, 0.5, 8)
    x[0, :, 0, 0], x[0, :, 0, 1], x[0, :, 0, 2] = 0.0, 1.0, 0.5  # without a hue
    got = hue_shifted(x, turns)
    for m in range(8):
        for rgb, new in zip(x[m].flatten(1).T.tolist(), got[m].flatten(1).T.tolist(), strict=True):
            h, s, v = colorsys.rgb_to_hsv(*rgb)
            wanted = colorsys.hsv_to_rgb((h + float(turns[m])) % 1.0, s, v)
            assert np.allclose(new, wanted, atol=1e-5)


def test_factors_of_1_change_nothing_and_of_0_take_all():
    x, one, none = pictures(3), torch.ones(3), torch.zeros(3)
    assert torch.allclose(jittered(x, one, one, one), x, atol=1e-6)
    assert torch.allclose(jittered(x, none, one, one), torch.zeros_like(x), atol=1e-6)
    mean = luma(x).mean((2, 3), keepdim=True).expand_as(x)
    assert torch.allclose(jittered(x, one, none, one), mean, atol=1e-6)
    assert torch.allclose(jittered(x, one, one, none), luma(x).expand_as(x), atol=1e-6)
    assert torch.allclose(jittered(x, one * 0.5, one, one), x * 0.5, atol=1e-6)


def test_jitter_is_brightness_then_contrast_then_saturation():
    x = 0.4 + 0.2 * pictures(4)  # so that nothing is cut off
    b, c, s = torch.rand(3, 4, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.8
    by = x * b[:, None, None, None]
    by = by.lerp(luma(by).mean((2, 3), keepdim=True), (1 - c)[:, None, None, None])
    by = by.lerp(luma(by).expand_as(by), (1 - s)[:, None, None, None])
    assert torch.allclose(jittered(x, b, c, s), by, atol=1e-5)


def test_a_blur_keeps_a_flat_image_and_spreads_a_dot_as_a_gaussian():
    flat = torch.full((1, 3, 9, 9), 0.3)
    assert torch.allclose(blurred(flat, torch.tensor([1.5])), flat, atol=1e-6)
    dot = torch.zeros(2, 1, 41, 41)
    dot[:, :, 20, 20] = 1.0
    got = blurred(dot, torch.tensor([1.0, 2.0]))
    at = torch.arange(41.0) - 20
    variance = (got.sum(2) * at.square()).sum((1, 2))
    assert torch.allclose(variance, torch.tensor([1.0, 4.0]), rtol=1e-3)


def test_what_is_light_becomes_dark():
    x = torch.tensor([0.0, 0.4, 0.5, 0.9]).reshape(1, 1, 2, 2)
    assert torch.allclose(solarised(x).flatten(), torch.tensor([0.0, 0.4, 0.5, 0.1]))


def test_an_image_of_one_colour_has_no_hue_and_stays():
    x = torch.full((1, 3, 4, 4), 0.7)
    assert torch.equal(hue_shifted(x, torch.tensor([0.3])), x)


def test_a_look_depends_on_its_own_numbers_alone():
    x = pictures(30, 64)
    looks = draw(ImageViews(saliency=0.0), 30, (64, 64), np.random.default_rng(0))
    together = looked(x, looks, 64)
    assert looks.grey.any() and looks.solarised.any() and (looks.sigma > 0).any()
    for i in (0, 7, 29):
        alone = Looks(*(getattr(looks, name)[i : i + 1] for name in Looks.__slots__))
        assert torch.allclose(looked(x[i : i + 1], alone, 64)[0], together[i], atol=1e-6)


def test_changes_are_as_frequent_and_as_strong_as_they_are_set():
    config = ImageViews(jitter=0.5, hue=0.2, brightness=0.3, grey=0.25, flip=0.75)
    looks = draw(config, 20_000, (64, 64), np.random.default_rng(0))
    assert looks.flip.mean() == pytest.approx(0.75, abs=0.02)
    assert looks.grey.mean() == pytest.approx(0.25, abs=0.02)
    assert (looks.hue != 0).mean() == pytest.approx(0.5, abs=0.02)
    assert abs(looks.hue).max() == pytest.approx(0.2, abs=0.01)
    assert looks.colours[:, 0].min() == pytest.approx(0.7, abs=0.01)
    assert looks.colours[:, 0].max() == pytest.approx(1.3, abs=0.01)


def test_small_images_are_neither_blurred_nor_solarised():
    config = ImageViews(blur=1.0, solarise=1.0)
    for size, coarse in ((32, False), (64, True)):
        looks = draw(config, 10, (64, size), np.random.default_rng(0))
        assert (looks.sigma > 0).all() == coarse and looks.solarised.all() == coarse


@given(st.integers(2, 9), st.floats(0.05, 0.95), st.booleans())
@settings(max_examples=30, deadline=None)
def test_the_share_of_patches_asked_for_is_hidden(grid, share, blocks):
    out = hidden(16, grid, share, np.random.default_rng(0), blocks=blocks)
    wanted = min(max(round(share * grid * grid), 1), grid * grid - 1)
    assert (out.sum(1) == wanted).all()


def test_blocks_are_side_by_side_more_than_at_random():
    def neighbours(blocks: bool) -> float:
        out = hidden(500, 8, 0.5, np.random.default_rng(0), blocks=blocks).reshape(-1, 8, 8)
        return float((out[:, :, 1:] & out[:, :, :-1]).sum() / out.sum())

    assert neighbours(True) > neighbours(False) + 0.1


def test_a_disc_is_salient_and_what_is_around_it_is_not():
    rng = np.random.default_rng(0)
    made, label = textures(rng, 200, 32)
    at = salient(floats(torch.from_numpy(made[label == 2])))[:, 0]
    assert at[:, 14:18, 14:18].float().mean() > 0.95
    assert at[:, [0, -1]].float().mean() < 0.05


@pytest.mark.parametrize("background", ["grey", "image"])
def test_a_background_is_replaced_and_the_object_is_not(background):
    config = ImageViews(
        **{name: getattr(NOTHING, name) for name in ("scale", "ratio", "flip", "jitter", "grey")},
        saliency=1.0,
        background=background,
    )
    made, _ = textures(np.random.default_rng(0), 8)
    windows = windows_of(made)
    kind = Images(config, SIDE, 1, 4, CPU)
    got = kind.views(windows, Needs(slices=1, window=True), np.random.default_rng(0), augment=True)
    look, plain = got.views["slices"]["image"], got.views["window"]["image"]
    keep = salient(plain).expand_as(plain)
    assert torch.equal(look[keep], plain[keep])
    behind = look.masked_fill(keep, 0.0)
    if background == "grey":
        assert (behind[~keep] == 0.5).all()
    else:
        others = [plain.roll(i, 0).masked_fill(keep, 0.0) for i in range(1, 8)]
        for i in range(8):
            assert any(torch.equal(behind[i], other[i]) for other in others)


def test_a_mixed_look_is_between_looks_at_two_images():
    batch = views(NOTHING)
    first, second, weight = (batch.index[f"mixed_{n}_B"] for n in ("first", "second", "weight"))
    plain = batch.views["window"]["image"]
    w = weight[:, None, None, None]
    assert first.tolist() == list(range(6)) and sorted(second.tolist()) == list(range(6))
    assert (first != second).all()
    expected = w * plain[first] + (1 - w) * plain[second]
    assert torch.allclose(batch.views["mixed"]["image"], expected, atol=1e-6)


def test_small_looks_have_a_side_that_the_patch_divides():
    for size, patch, wanted in ((32, 8, 16), (28, 14, 14), (20, 4, 8), (16, 0, 8)):
        assert Images(ImageViews(), size, patch, 2, CPU).small_size == wanted


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"scale": (0.0, 1.0)}, "learner.views.scale"),
        ({"scale": (0.5, 1.2)}, "learner.views.scale"),
        ({"ratio": (2.0, 1.0)}, "learner.views.ratio"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, says):
    with pytest.raises(SettingsError, match=says):
        ImageViews(**changes)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_looks_are_the_same_on_a_gpu():
    windows = windows_of(noise(np.random.default_rng(1), 6))
    on = [
        Images(ImageViews(), SIDE, 4, 4, torch.device(name)).views(
            windows, ALL, np.random.default_rng(0), augment=True
        )
        for name in ("cpu", "cuda")
    ]
    for name, view in on[0].views.items():
        assert torch.allclose(view["image"], on[1].views[name]["image"].cpu(), atol=1e-4)
