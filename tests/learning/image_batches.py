"""Batches of small images, and an encoder of them that is enough for an objective."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learning.contract import Batch, Output, View

DIM, TOKENS, PATCH, SIDE = 8, 6, 4, 8  # of a vector, of a token, a patch's side, an image's


class Patches(nn.Module):
    """A linear layer for each patch of 4 × 4, their mean, a vector; hidden patches are 0."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Linear(3 * PATCH**2, TOKENS)
        self.mix = nn.Linear(TOKENS, TOKENS)
        self.out = nn.Linear(TOKENS, DIM)

    def forward(self, view: View) -> Output:
        patch = F.unfold(view["image"], PATCH, stride=PATCH).transpose(1, 2)
        if "masked_BT" in view:
            patch = patch * ~view["masked_BT"].unsqueeze(2)
        h_BTF = self.token(patch)
        mean_BF = torch.tanh(h_BTF.mean(1))
        h_BTF = torch.tanh(h_BTF + self.mix(mean_BF).unsqueeze(1))
        return Output(F.normalize(self.out(mean_BF), dim=1), h_BTF, {})


def image_batch(b: int, *, looks: int = 2, small: int = 2, seed: int = 0) -> Batch:
    """b images of as many entities, looked at as every objective may ask."""
    g = torch.Generator().manual_seed(seed)
    image = torch.rand(b, 3, SIDE, SIDE, generator=g)

    def look(of: Tensor, count: int) -> Tensor:
        noise = torch.rand(len(of) * count, *of.shape[1:], generator=g)
        return 0.8 * of.repeat_interleave(count, 0) + 0.2 * noise

    slices = {"image": look(image, looks)}
    masked = torch.rand(b * looks, (SIDE // PATCH) ** 2, generator=g) < 0.5
    masked[0] = True  # some image is hidden altogether, and some is not at all
    masked[-1] = False
    second = torch.arange(b).roll(1)
    share = torch.rand(b, generator=g)
    mixed = share[:, None, None, None] * image + (1 - share)[:, None, None, None] * image[second]
    at = torch.arange(b * looks).reshape(b, looks)
    pairs = torch.combinations(torch.arange(looks), 2)
    views = {
        "slices": slices,
        "window": {"image": image},
        "small": {"image": look(image[:, :, :PATCH, :PATCH], small)},
        "masked": {**slices, "masked_BT": masked},
        "mixed": {"image": mixed},
    }
    index = {
        "entity_B": torch.randint(1 << 40, (b,), generator=g),
        "record_B": torch.arange(b),
        "time_B": torch.arange(b),
        "owner_M": torch.arange(b).repeat_interleave(looks),
        "small_owner_M": torch.arange(b).repeat_interleave(small),
        "mixed_first_B": torch.arange(b),
        "mixed_second_B": second,
        "mixed_weight_B": share,
    }
    positives = torch.stack([at[:, pairs[:, 0]].flatten(), at[:, pairs[:, 1]].flatten()])
    return Batch(views, index, {"positives": positives}, 0)


def reordered(batch: Batch, order: Tensor) -> Batch:
    """The same images, looks and all, in another order."""
    b = len(order)
    back = torch.argsort(order)

    def by_entity(t: Tensor) -> Tensor:
        return t.unflatten(0, (b, -1))[order].flatten(0, 1)

    views = {
        name: {key: by_entity(t) for key, t in view.items()} for name, view in batch.views.items()
    }
    index = {name: t if name.endswith("owner_M") else t[order] for name, t in batch.index.items()}
    for name in ("mixed_first_B", "mixed_second_B"):
        index[name] = back[index[name]]
    return Batch(views, index, batch.pairs, 0)
