"""Each loss against the formula of its paper, written plainly."""

import numpy as np
import torch
import torch.nn.functional as F

from learning.config import BagConfig
from learning.contract import Batch, Output
from learning.objectives.bag import Bag, bag_loss
from learning.objectives.coles import coles_loss
from learning.objectives.mlem import category_loss, number_loss
from learning.objectives.vicreg import vicreg_loss
from learning.quality import alignment, effective_rank, uniformity
from schemas.stream import Shape

G = torch.Generator().manual_seed(0)


def unit(b: int, d: int) -> torch.Tensor:
    return F.normalize(torch.randn(b, d, generator=G), dim=1)


def test_coles_is_the_contrastive_loss_with_the_hardest_negatives():
    z, entity = unit(12, 3), torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 3])
    terms = []
    for i in range(12):
        pushed = []
        for j in range(12):
            d = float(torch.dist(z[i], z[j]))
            if entity[i] == entity[j]:
                if i < j:
                    terms.append(0.5 * d**2)
            else:
                pushed.append((d, 0.5 * max(0.0, 0.9 - d) ** 2))
        terms += [loss for _, loss in sorted(pushed)[:4]]
    assert np.isclose(float(coles_loss(z, entity, 0.9, 4)), np.mean(terms), atol=1e-5)


def test_slices_of_one_entity_are_never_negatives():
    z = unit(6, 4).requires_grad_()
    loss = coles_loss(z, torch.zeros(6, dtype=torch.int64), 0.5, 5)
    squared = torch.cdist(z, z)[torch.triu(torch.ones(6, 6), 1).bool()] ** 2
    torch.testing.assert_close(loss, 0.5 * squared.mean())


def test_equal_vectors_of_two_entities_give_a_finite_slope():
    z = unit(1, 4).repeat(4, 1).requires_grad_()
    coles_loss(z, torch.tensor([0, 0, 1, 1]), 0.5, 5).backward()
    assert z.grad.isfinite().all()


def test_vicreg_is_the_paper_s():
    a, b = torch.randn(10, 5, generator=G), torch.randn(10, 5, generator=G)
    expected = 25 * float(((a - b) ** 2).mean())
    for x in (a.numpy(), b.numpy()):
        cov = np.cov(x, rowvar=False)
        deviation = np.sqrt(np.diag(cov) + 1e-4)
        expected += 25 * np.maximum(0, 1 - deviation).mean() / 2
        expected += (cov**2).sum() / 5 - (np.diag(cov) ** 2).sum() / 5
    assert np.isclose(float(vicreg_loss(a, b, (25.0, 25.0, 1.0))), expected, rtol=1e-5)


def test_a_bag_is_foretold_word_by_word():
    logits = torch.randn(3, 2, 4, generator=G)
    bags = [[[0, 0, 3], [1]], [[2], []], [[], [3, 1]]]
    counts, each = torch.zeros(3, 2, 4), []
    for m, f in np.ndindex(3, 2):
        words = bags[m][f]
        counts[m, f] = torch.bincount(torch.tensor(words, dtype=torch.int64), minlength=4)
        if words:
            p = logits[m, f].softmax(-1)
            each.append(torch.stack([-p[w].log() for w in words]).mean())
    torch.testing.assert_close(bag_loss(logits, counts), torch.stack(each).mean())
    assert bag_loss(logits, torch.zeros(3, 2, 4)) == 0


def test_a_slice_foretells_the_others_and_not_itself():
    shape = Shape(0, 1)
    objective = Bag(BagConfig(slices=2, bucket_bits=2), shape, 4)
    z = unit(4, 4)
    view = {
        "categories": torch.tensor([[5, 6, 6], [3, 3, 3], [0, 1, 2], [4, 4, 4]])[..., None],
        "missing": torch.tensor([[0, 0, 0], [0, 0, 0], [0, 0, 1], [0, 0, 0]]).bool()[..., None],
        "valid_BT": torch.tensor([[1, 1, 0], [1, 1, 1], [1, 1, 1], [1, 0, 0]]).bool(),
    }
    index = {"entity_B": torch.tensor([7, 8]), "owner_M": torch.tensor([0, 0, 1, 1])}
    encode = lambda _: Output(z, z, {})  # noqa: E731
    loss, _ = objective(encode, encode, Batch({"slices": view}, index, {}, 0))
    others = torch.tensor([[0, 0, 0, 3], [0, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0]]).float()
    expected = bag_loss(objective.head(z * 2)[:, None], others[:, None])
    torch.testing.assert_close(loss, expected)
    assert (
        float(
            Bag(BagConfig(), Shape(2, 0), 4)(encode, encode, Batch({"slices": view}, index, {}, 0))[
                0
            ]
        )
        == 0
    )


def test_next_event_losses_count_only_what_is_there():
    logits = torch.randn(2, 3, 2, 4, generator=G)
    bucket = torch.randint(0, 4, (2, 3, 2), generator=G)
    there = torch.rand(2, 3, 2, generator=G) < 0.5
    p = logits.log_softmax(-1)
    each = [-p[*at][bucket[*at]] for at in there.nonzero().tolist()]
    torch.testing.assert_close(category_loss(logits, bucket, there), torch.stack(each).mean())
    guess, truth = torch.randn(2, 3, generator=G) * 2, torch.zeros(2, 3)
    mask = torch.tensor([[True, False, True], [True, True, False]])
    d = guess.abs()[mask]
    huber = torch.where(d < 1, 0.5 * d**2, d - 0.5)
    torch.testing.assert_close(number_loss(guess, truth, mask), huber.mean())
    assert number_loss(guess, truth, torch.zeros(2, 3).bool()) == 0


def test_effective_rank_and_uniformity_see_collapse():
    z = unit(400, 8)
    s = np.linalg.svd(z.double().numpy(), compute_uv=False)
    p = s / s.sum()
    assert np.isclose(float(effective_rank(z)), np.exp(-(p * np.log(p)).sum()), rtol=1e-6)
    assert float(effective_rank(z[:1].expand(50, -1))) < 1.01
    d2 = torch.pdist(z).square()
    torch.testing.assert_close(uniformity(z), torch.exp(-2 * d2).mean().log(), atol=1e-5, rtol=0)
    assert abs(float(uniformity(z[:1].expand(50, -1)))) < 1e-5
    torch.testing.assert_close(alignment(z, z.flip(0)), ((z - z.flip(0)) ** 2).sum(1).mean())
