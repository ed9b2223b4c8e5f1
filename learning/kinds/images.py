"""Images: pixels -> augmented looks, cut on the device from bytes. No loop over images, no object for one.

All numbers of all looks are drawn on the CPU by the generator given, so that they are the same on every device.
Shapes: B images, M looks, S pixels on a side of an image, s of a look, T = grid² patches."""

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from learning.config_images import ImageViews
from learning.contract import Batch, Needs, View
from learning.kinds import pixels_view
from learning.kinds.events import index_of, positives, tensors
from learning.pixels import (
    blurred,
    cropped,
    floats,
    hue_shifted,
    jittered,
    luma,
    resized,
    salient,
    solarised,
)
from schemas.records import F32, I64, Bool, Windows
from schemas.stream import LABEL

COARSE = (
    64  # pixels on a side from which looks are blurred and solarised: smaller ones would lose all
)
SIGMA = (0.1, 2.0)  # of a blur, at 224 pixels on a side


@dataclass(slots=True)
class Looks:
    """What M looks are like; factors of 1 and hues of 0 change nothing."""

    box: I64  # [M, 4] top, left, height, width
    flip: Bool  # [M]
    colours: F32  # [M, 3] factors of brightness, contrast, saturation
    hue: F32  # [M] turns
    grey: Bool  # [M]
    sigma: F32  # [M] of the blur; 0: none
    solarised: Bool  # [M]
    background: Bool  # [M] it is replaced

    def __len__(self) -> int:
        return len(self.flip)


def draw(
    views: ImageViews,
    m: int,
    sides: tuple[int, int],
    rng: np.random.Generator,
    *,
    small: bool = False,
) -> Looks:
    """m looks of `sides[1]` pixels at images of `sides[0]`."""
    side, size = sides
    u = rng.random((m, 16), np.float32)
    symmetric = 2.0 * u[:, :4] - 1.0
    strengths = np.array(
        [views.brightness, views.contrast, views.saturation, views.hue], np.float32
    )
    some = u[:, 4] < views.jitter
    moved = symmetric * strengths * some[:, None]
    coarse = size >= COARSE
    low, high = SIGMA
    sigma = (low + (high - low) * u[:, 5]) * size / 224
    return Looks(
        boxes(views.small_scale if small else views.scale, views.ratio, side, u[:, 6:10]),
        u[:, 10] < views.flip,
        1.0 + moved[:, :3],
        moved[:, 3],
        u[:, 11] < views.grey,
        np.where((u[:, 12] < views.blur) & coarse, sigma, np.float32(0.0)),
        (u[:, 13] < views.solarise) & coarse,
        u[:, 14] < views.saliency,
    )


def boxes(scale: tuple[float, float], ratio: tuple[float, float], side: int, u: F32) -> I64:
    """Boxes [M, 4] of an area in `scale` and of width by height in `ratio`, as far as they fit. u: [M, 4] in 0..1."""
    area = side**2 * (scale[0] + (scale[1] - scale[0]) * u[:, 0])
    low, high = np.log(ratio)
    shape = np.exp(low + (high - low) * u[:, 1])
    height = np.clip(np.rint(np.sqrt(area / shape)), 1, side).astype(np.int64)
    width = np.clip(np.rint(np.sqrt(area * shape)), 1, side).astype(np.int64)
    top = (u[:, 2] * (side - height + 1)).astype(np.int64).clip(max=side - height)
    left = (u[:, 3] * (side - width + 1)).astype(np.int64).clip(max=side - width)
    return np.stack([top, left, height, width], 1)


def looked(x: Tensor, looks: Looks, size: int) -> Tensor:
    """Images [M, 3, S, S] in 0..1 -> their looks [M, 3, size, size] in 0..1. Colours: jitter, hue, grey, blur,
    solarise, in this order."""
    on = {f.name: torch.from_numpy(getattr(looks, f.name)).to(x.device) for f in fields(Looks)}
    x = cropped(x, on["box"], on["flip"], size)

    def change(which: Bool, how: Callable[[Tensor, Tensor], Tensor]) -> None:
        if which.any():
            at = torch.from_numpy(np.flatnonzero(which)).to(x.device)
            x[at] = how(x[at], at)

    change((looks.colours != 1.0).any(1), lambda part, at: jittered(part, *on["colours"][at].T))
    change(looks.hue != 0.0, lambda part, at: hue_shifted(part, on["hue"][at]))
    change(looks.grey, lambda part, _: luma(part).expand_as(part))
    change(looks.sigma > 0.0, lambda part, at: blurred(part, on["sigma"][at]))
    change(looks.solarised, lambda part, _: solarised(part))
    return x


def hidden(m: int, grid: int, share: float, rng: np.random.Generator, *, blocks: bool) -> Bool:
    """[M, T] patches that are hidden, `share` of each look's (one at least, never all); `blocks`: side by side.

    Connected ones, as GMML asks for: Atito et al. 2022, arXiv:2205.14986; here the highest of smoothed noise."""
    score = rng.random((m, grid, grid), np.float32)
    if blocks:
        wide = np.pad(score, ((0, 0), (1, 1), (1, 1)), mode="edge")
        down = wide[:, :-2] + wide[:, 1:-1] + wide[:, 2:]
        score = down[:, :, :-2] + down[:, :, 1:-1] + down[:, :, 2:]
    count = int(np.clip(round(share * grid * grid), 1, max(1, grid * grid - 1)))
    order = np.argsort(score.reshape(m, -1), axis=1)
    out = np.zeros((m, grid * grid), np.bool_)
    np.put_along_axis(out, order[:, :count], True, axis=1)
    return out


class Images:
    """The kind of streams whose records are images. `size`: s of a look; `patch`: a small look's side is a multiple of
    it; `grid`: the encoder's patches on a side."""

    def __init__(
        self, views: ImageViews, size: int, patch: int, grid: int, device: torch.device
    ) -> None:
        self._views, self.size, self._grid, self._device = views, size, grid, device
        patch = max(1, patch)
        self.small_size = max(1, (views.small_size or size // 2) // patch) * patch

    def views(
        self, windows: Windows, needs: Needs, rng: np.random.Generator, *, augment: bool
    ) -> Batch:
        """Looks differ also without `augment`, for they are the task. On the device already: moved on it is nothing."""
        del augment
        n = len(windows)
        x = floats(pixels_view(windows)["pixels"].to(self._device))
        index, pairs = index_of(windows), {}
        rows = windows.rows
        if not rows.missing[:, LABEL].any():
            index["label_B"] = rows.categories[:, LABEL]
        views: dict[str, View] = {}
        if needs.slices:
            index["owner_M"] = np.repeat(np.arange(n), needs.slices)
            views["slices"] = {"image": self._looks(x, index["owner_M"], rng)}
            pairs["positives"] = positives(n, needs.slices)
        if needs.small:
            index["small_owner_M"] = np.repeat(np.arange(n), needs.small)
            views["small"] = {"image": self._looks(x, index["small_owner_M"], rng, small=True)}
        if needs.patches:
            blocks = self._views.mask == "block"
            out = hidden(n * needs.slices, self._grid, needs.patches, rng, blocks=blocks)
            views["masked"] = {**views["slices"], "masked_BT": torch.from_numpy(out)}
        if needs.window:
            views["window"] = {"image": resized(x, self.size)}
        if needs.mixed:
            views["mixed"] = {"image": self._mixed(x, index, rng)}
        now_us = int(rows.time_us.max(initial=0))
        return Batch(views, tensors(index), tensors(pairs), now_us)

    def _looks(
        self, x: Tensor, owner: I64, rng: np.random.Generator, *, small: bool = False
    ) -> Tensor:
        """Looks [M, 3, s, s] at the images `owner` [M] of x [B, 3, S, S]."""
        size = self.small_size if small else self.size
        looks = draw(self._views, len(owner), (x.shape[2], size), rng, small=small)
        mine = x[torch.from_numpy(owner).to(x.device)]
        at = np.flatnonzero(looks.background)
        if len(at):
            mine = self._without_background(x, mine, (owner, at), rng)
        return looked(mine, looks, size)

    def _without_background(
        self, x: Tensor, mine: Tensor, which: tuple[I64, I64], rng: np.random.Generator
    ) -> Tensor:
        """Some looks' background is grey, or another image's. Source: Ryali et al. 2021, arXiv:2103.12719."""
        owner, at = (torch.from_numpy(a).to(x.device) for a in which)
        keep = salient(x)[owner[at]]
        behind = torch.full_like(mine[at], 0.5)
        if self._views.background == "image":
            shift = rng.integers(1, max(2, len(x)), len(at))
            behind = x[(owner[at] + torch.from_numpy(shift).to(x.device)) % len(x)]
        mine[at] = torch.where(keep, mine[at], behind)
        return mine

    def _mixed(self, x: Tensor, index: dict[str, np.ndarray], rng: np.random.Generator) -> Tensor:
        """A look at each image, mixed with one at another. Source: mixup, Zhang et al. 2018, arXiv:1710.09412, its
        share even."""
        n = len(x)
        order = rng.permutation(n)
        second = np.empty(n, np.int64)
        second[order] = np.roll(order, 1)
        share = rng.random(n, np.float32)
        index |= {"mixed_first_B": np.arange(n), "mixed_second_B": second, "mixed_weight_B": share}
        one, other = (self._looks(x, owner, rng) for owner in (np.arange(n), second))
        of_one = torch.from_numpy(share).to(x.device)[:, None, None, None]
        return other.lerp(one, of_one)
