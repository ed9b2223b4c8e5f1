"""Losses of images: each against the formula of its paper, written plainly; then what all of them promise."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from learning import config_images as images
from learning.config import GruConfig, LearnerConfig, VicregConfig
from learning.contract import Batch
from learning.objectives import build
from learning.objectives.barlow_twins import barlow_twins_loss
from learning.objectives.byol import byol_loss
from learning.objectives.cassle import contrast
from learning.objectives.dino import patch_loss
from learning.objectives.gmml import gmml_loss, patches
from learning.objectives.heads import Averaged, mlp
from learning.objectives.instance import Bank, instance_loss
from learning.objectives.moco_v3 import info_nce, moco_loss
from learning.objectives.sigreg import prediction, sigreg
from learning.objectives.simclr import nt_xent, relations
from learning.objectives.sscd import koleo, shared
from learning.objectives.swav import sinkhorn, swapped_prediction
from learning.objectives.vicreg import vicreg_loss
from learning.objectives.w_mse import w_mse_loss, whitened
from schemas.errors import SettingsError
from schemas.stream import Shape
from tests.learning.image_batches import DIM, TOKENS, Patches, image_batch, reordered

G = torch.Generator().manual_seed(0)


def randn(*size: int) -> torch.Tensor:
    return torch.randn(*size, generator=G)


def unit(*size: int) -> torch.Tensor:
    return F.normalize(randn(*size), dim=-1)


def cosine(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cosine_similarity(x, y, dim=0)


# -- formulas -----------------------------------------------------------------------------------------------


def test_nt_xent_is_simclr_s():
    """Of 2B rows in pairs (2k, 2k + 1), over all but the row itself."""
    y, t = randn(10, 4), 0.3
    owner = torch.arange(5).repeat_interleave(2)
    each = []
    for i in range(10):
        s = [(cosine(y[i], y[k]) / t).exp() for k in range(10)]
        each.append(-(s[i ^ 1] / sum(s[k] for k in range(10) if k != i)).log())
    torch.testing.assert_close(nt_xent(y, *relations(owner, owner), t), torch.stack(each).mean())


def test_two_images_of_one_entity_neither_attract_nor_repel():
    owner, entity = torch.arange(3).repeat_interleave(2), torch.tensor([7, 7, 7, 7, 8, 8])
    positive, negative = relations(owner, entity)
    assert positive.nonzero().tolist() == [[0, 1], [1, 0], [2, 3], [3, 2], [4, 5], [5, 4]]
    assert not negative[:4, :4].any() and negative[:4, 4:].all()
    y = randn(4, 4).requires_grad_()
    alone = nt_xent(y, positive[:4, :4], negative[:4, :4], 0.3)
    alone.backward()
    assert float(alone.detach()) == 0.0 and (y.grad == 0).all()


def test_barlow_twins_is_the_authors_formula_per_dimension():
    a, b = randn(12, 5), randn(12, 5)
    scaled = [(x - x.mean(0)) / x.std(0, correction=0) for x in (a, b)]
    total = 0.0
    for i in range(5):
        for j in range(5):
            c = float((scaled[0][:, i] * scaled[1][:, j]).mean())
            total += (1 - c) ** 2 if i == j else 0.01 * c**2
    assert math.isclose(float(barlow_twins_loss(a, b, 0.01)), total / 5, rel_tol=1e-4)


def test_byol_is_the_squared_distance_of_unit_vectors():
    a, b = randn(6, 4), randn(6, 4)
    each = [(x / x.norm() - y / y.norm()).square().sum() for x, y in zip(a, b, strict=True)]
    torch.testing.assert_close(byol_loss(a, b), torch.stack(each).mean())


def test_moco_v3_is_the_authors_algorithm_halved():
    q, k, t = randn(5, 2, 4), randn(5, 2, 4), 0.3
    total = 0.0
    for a, b in ((0, 1), (1, 0)):
        logits = torch.stack([torch.stack([cosine(x, y) for y in k[:, b]]) for x in q[:, a]]) / t
        total = total + 2 * t * F.cross_entropy(logits, torch.arange(5))
    torch.testing.assert_close(moco_loss(q, k, torch.arange(5), t), total / 2)


def test_info_nce_leaves_out_keys_of_the_same_entity():
    q, k, entity = randn(4, 3), randn(4, 3), torch.tensor([1, 2, 1, 3])
    each = []
    for i in range(4):
        s = {j: (cosine(q[i], k[j]) / 0.2).exp() for j in range(4)}
        others = [j for j in range(4) if entity[j] != entity[i]]
        each.append(-(s[i] / (s[i] + sum(s[j] for j in others))).log())
    torch.testing.assert_close(info_nce(q, k, entity, 0.2), torch.stack(each).mean())


def test_whitening_makes_the_covariance_one():
    y = randn(400, 6) @ randn(6, 6) + 3.0
    w = whitened(y)
    torch.testing.assert_close(torch.cov(w.T), torch.eye(6), atol=1e-2, rtol=0)
    torch.testing.assert_close(w.mean(0), torch.zeros(6), atol=1e-4, rtol=0)


def test_w_mse_whitens_each_view_and_each_part_for_itself():
    a, b = randn(24, 3), randn(24, 3)
    parts = (torch.arange(0, 24, 2), torch.arange(1, 24, 2))
    each = []
    for part in parts:
        white = []
        for x in (a[part], b[part]):
            root = torch.linalg.cholesky(torch.cov(x.T))  # Σ = L Lᵀ
            white.append(torch.stack([root.inverse() @ row for row in x - x.mean(0)]))
        each += [2 - 2 * cosine(x, y) for x, y in zip(*white, strict=True)]
    torch.testing.assert_close(w_mse_loss(a, b, parts), torch.stack(each).mean(), rtol=1e-3, atol=0)


def test_sinkhorn_is_the_authors_loop():
    scores, epsilon = randn(7, 4), 0.5
    q = torch.exp(scores / epsilon).T
    q /= q.sum()
    for _ in range(3):
        q /= q.sum(1, keepdim=True) * 4
        q /= q.sum(0, keepdim=True) * 7
    torch.testing.assert_close(sinkhorn(scores, epsilon), (q * 7).T)
    torch.testing.assert_close(sinkhorn(scores * 1e4, epsilon).sum(1), torch.ones(7))


def test_the_swapped_prediction_is_the_authors_loop_over_crops():
    target, scores = torch.softmax(randn(5, 2, 6), 2), randn(5, 4, 6)
    total = 0.0
    for v in range(2):
        for c in range(4):
            if c != v:
                p = torch.softmax(scores[:, c] / 0.1, 1)
                total = total - (target[:, v] * p.log()).sum(1).mean() / 3
    torch.testing.assert_close(swapped_prediction(target, scores, 0.1), total / 2)


def test_ibot_weighs_images_alike_however_many_patches_they_hide():
    masked = torch.tensor([[True, True, False], [False, True, False], [False, False, False]])
    target, scores = torch.softmax(randn(3, 5), 1), randn(3, 5)
    cross = [
        -(q * torch.softmax(s / 0.1, 0).log()).sum() for q, s in zip(target, scores, strict=True)
    ]
    expected = ((cross[0] + cross[1]) / 2 + cross[2]) / 3
    torch.testing.assert_close(patch_loss(target, scores, masked, 0.1), expected)
    assert float(patch_loss(target[:0], scores[:0], masked[2:], 0.1)) == 0.0


def test_instance_is_the_non_parametric_softmax():
    z, own, bank = unit(3, 4), unit(3, 4), unit(5, 4)
    banned = torch.zeros(3, 5).bool()
    banned[1, 2] = True
    each = []
    for i in range(3):
        e = [(z[i] @ bank[j] / 0.1).exp() for j in range(5) if not banned[i, j]]
        p = (z[i] @ own[i] / 0.1).exp()
        each.append(-(p / (p + sum(e))).log())
    torch.testing.assert_close(instance_loss(z, own, bank, banned, 0.1), torch.stack(each).mean())


def test_gmml_is_the_error_of_hidden_pixels():
    image, guess = torch.rand(2, 3, 8, 8, generator=G), torch.rand(2, 4, 48, generator=G)
    masked = torch.tensor([[True, False, False, True], [False, True, False, False]])
    errors = []
    for m, t in masked.nonzero().tolist():
        row, column = 4 * (t // 2), 4 * (t % 2)
        truth = image[m, :, row : row + 4, column : column + 4]
        errors.append((guess[m, t].reshape(3, 4, 4) - truth).abs())
    loss = gmml_loss(guess, patches(image, 2, 4), masked)
    torch.testing.assert_close(loss, torch.stack(errors).mean())
    assert float(gmml_loss(guess, patches(image, 2, 4), torch.zeros(2, 4).bool())) == 0.0


def test_a_patch_may_be_predicted_coarser_than_it_is():
    image = torch.rand(1, 3, 8, 8, generator=G)
    coarse = patches(image, 2, 2)[0, 1].reshape(3, 2, 2)
    torch.testing.assert_close(coarse[:, 0, 1], image[0, :, 0:2, 6:8].mean((1, 2)))


def test_sigreg_is_the_epps_pulley_statistic():
    y, direction = randn(9, 3), F.normalize(randn(3, 2), dim=0)
    each = []
    for s in range(2):
        x = (y @ direction[:, s]).double()
        t = torch.linspace(-3, 3, 33, dtype=torch.float64)
        phi = torch.stack([torch.exp(1j * u * x).mean() for u in t])
        gap = (phi - torch.exp(-(t**2) / 2)).abs() ** 2 * torch.exp(-(t**2) / 2)
        each.append(9 * torch.trapezoid(gap, t))
    torch.testing.assert_close(
        sigreg(y, direction).double(), torch.stack(each).mean(), rtol=1e-5, atol=0
    )


def test_sigreg_knows_a_gaussian_from_what_collapsed():
    direction = F.normalize(randn(4, 64), dim=0)
    gaussian = float(sigreg(randn(512, 4), direction))
    line = float(sigreg(randn(512, 1).expand(-1, 4) / 2, direction))
    point = float(sigreg(torch.zeros(512, 4), direction))
    assert gaussian < 5 < 100 < line < point


def test_crops_predict_the_mean_of_the_looks():
    crops = randn(3, 4, 5)
    each = [
        (crops[b, :2].mean(0) - crops[b, c]).square().mean() for b in range(3) for c in range(4)
    ]
    torch.testing.assert_close(prediction(crops[:, :2], crops), torch.stack(each).mean())


def test_sscd_is_the_authors_formula():
    """As their training step has it, with mixed images: match where any content is shared."""
    z, owner = (
        unit(8, 4),
        torch.tensor([[0, 0], [0, 0], [1, 1], [1, 1], [2, 2], [2, 2], [0, 1], [2, 2]]),
    )
    positive = shared(owner) & ~torch.eye(8).bool()
    other = ~shared(owner)
    near = (z @ z.T / 0.5).exp()
    each, nearest = [], []
    for i in range(8):
        kin = [bool(set(owner[i].tolist()) & set(owner[j].tolist())) for j in range(8)]
        assert [bool(p) for p in positive[i]] == [k and j != i for j, k in enumerate(kin)]
        apart = sum(near[i, j] for j in range(8) if not kin[j])
        terms = [-(near[i, j] / (near[i, j] + apart)).log() for j in range(8) if kin[j] and j != i]
        each.append(torch.stack(terms).mean())
        nearest.append(
            -torch.stack([torch.dist(z[i], z[j]) for j in range(8) if not kin[j]]).min().log()
        )
    torch.testing.assert_close(nt_xent(z, positive, other, 0.5), torch.stack(each).mean())
    torch.testing.assert_close(koleo(z, other), torch.stack(nearest).mean())


def test_cassle_s_contrast_is_the_authors_symmetric_one():
    p, z, t = randn(6, 4), randn(6, 4), 0.3
    owner = torch.arange(3).repeat_interleave(2)

    def one_way(x, y):
        each = []
        for i in range(6):
            s = [(cosine(x[i], y[j]) / t).exp() for j in range(6)]
            each.append(-(s[i] / sum(s[j] for j in range(6) if j != (i ^ 1))).log())
        return torch.stack(each).mean()

    torch.testing.assert_close(contrast(p, z, owner, t), (one_way(p, z) + one_way(z, p)) / 2)


# -- what all promise ---------------------------------------------------------------------------------------

CONFIGS = {
    "vicreg": VicregConfig(expander=16),
    "barlow_twins": images.BarlowTwinsConfig(hidden=16, projection=12),
    "simclr": images.SimclrConfig(hidden=16, projection=8),
    "w_mse": images.WMseConfig(hidden=16, projection=4, subbatch=16),
    "byol": images.ByolConfig(hidden=16, projection=8),
    "moco_v3": images.MocoV3Config(hidden=16, projection=8),
    "dino": images.DinoConfig(hidden=16, projection=8, prototypes=12),
    "dino_v2": images.DinoConfig(
        hidden=16, projection=8, prototypes=12, small=2, patches=0.5, koleo=0.1
    ),
    "swav": images.SwavConfig(hidden=16, projection=8, prototypes=6),
    "swav_small": images.SwavConfig(hidden=16, projection=8, prototypes=6, small=2),
    "instance": images.InstanceConfig(bank=16),
    "gmml": images.GmmlConfig(hidden=16, pixels=2),
    "sigreg": images.SigregConfig(hidden=16, projection=6, directions=16, small=2),
    "sscd": images.SscdConfig(),
    "sscd_unmixed": images.SscdConfig(mixed=False),
    "cassle": images.CassleConfig(hidden=16),
    "cassle_contrast": images.CassleConfig(hidden=16, loss="contrast"),
}
MOVED = {
    "byol": {"averaged"},
    "moco_v3": {"averaged"},
    "dino": {"image.teacher"},
    "dino_v2": {"image.teacher", "patch.teacher"},
    "instance": {"bank"},
}
"""What `apply_update` moves; of all others, nothing."""

every = pytest.mark.parametrize("name", CONFIGS)


class Trial:
    """An objective, a student and a teacher."""

    def __init__(self, name: str, seed: int = 0) -> None:
        torch.manual_seed(seed)
        encoder = GruConfig(dim=DIM, hidden=TOKENS)
        self.objective = build(CONFIGS[name], encoder, Shape(0, 0))
        self.student, self.teacher = Patches(), Patches()
        parts = [self.student, self.objective]
        every = [p for part in parts for p in part.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(every, 3e-3)

    def teach(self, view):
        with torch.no_grad():
            return self.teacher(view)

    def loss(self, batch: Batch, seed: int = 0):
        torch.manual_seed(seed)
        return self.objective(self.student, self.teach, batch)

    def step(self, batch: Batch, *, still: bool = False) -> float:
        self.optimizer.zero_grad()
        loss, update = self.loss(batch)
        loss.backward()
        self.optimizer.step()
        if not still:
            self.objective.apply_update(update)
        return float(loss.detach())


def after_some_steps(name: str, b: int = 8) -> Trial:
    trial = Trial(name)
    for seed in range(4):
        trial.step(image_batch(b, seed=seed))
    return trial


@every
def test_it_is_learnt(name):
    """Of a teacher and a bank that stand still."""
    trial, batch = after_some_steps(name), image_batch(16, seed=9)
    before = float(trial.loss(batch)[0].detach())
    for _ in range(60):
        trial.step(batch, still=True)
    assert float(trial.loss(batch)[0].detach()) < before


@every
@pytest.mark.parametrize("b", [2, 3, 8])
def test_few_images_are_enough(name, b):
    trial = Trial(name)
    for seed in range(3):
        loss, update = trial.loss(image_batch(b, seed=seed))
        assert loss.shape == () and loss.isfinite()
        loss.backward()
        parts = [*trial.student.parameters(), *trial.objective.parameters()]
        assert all(p.grad.isfinite().all() for p in parts if p.grad is not None)
        trial.objective.apply_update(update)
    assert all(t.isfinite().all() for t in trial.objective.state_dict().values())


@every
def test_looks_that_are_all_the_same_give_a_finite_slope(name):
    batch = image_batch(4)
    for view in batch.views.values():
        view["image"] = torch.full_like(view["image"], 0.5)
    trial = Trial(name)
    loss, _ = trial.loss(batch)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in trial.student.parameters() if p.grad is not None)


@every
def test_one_entity_alone_gives_a_finite_loss(name):
    batch = image_batch(4)
    batch.index["entity_B"][:] = 7
    trial = after_some_steps(name)
    loss, update = trial.loss(batch)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in trial.student.parameters() if p.grad is not None)
    trial.objective.apply_update(update)


@every
def test_the_order_of_images_does_not_matter(name):
    trial, batch = after_some_steps(name), image_batch(8, seed=9)
    order = torch.randperm(8, generator=G)
    with torch.no_grad():
        loss, _ = trial.loss(batch)
        again, _ = trial.loss(reordered(batch, order))
    torch.testing.assert_close(loss, again, rtol=1e-4, atol=1e-5)


@every
def test_more_looks_than_two_are_taken_too(name):
    """Another objective may have asked for them."""
    loss, _ = Trial(name).loss(image_batch(4, looks=3))
    assert loss.isfinite()


@every
def test_only_the_student_has_a_slope(name):
    trial = after_some_steps(name)
    trial.optimizer.zero_grad()
    trial.loss(image_batch(8, seed=9))[0].backward()
    assert any((p.grad != 0).any() for p in trial.student.parameters() if p.grad is not None)
    assert all(p.grad is None for p in trial.teacher.parameters())
    for key, parameter in trial.objective.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), key
        assert parameter.requires_grad != any(key.startswith(m) for m in MOVED.get(name, ()))


@every
def test_state_moves_in_apply_update_alone(name):
    trial = after_some_steps(name)
    before = copy.deepcopy(trial.objective.state_dict())
    loss, update = trial.loss(image_batch(8, seed=9))
    loss.backward()
    for key, tensor in trial.objective.state_dict().items():
        assert torch.equal(tensor, before[key])
    with torch.no_grad():
        for parameter in trial.objective.parameters():
            if parameter.requires_grad:
                parameter += 0.01
    before = copy.deepcopy(trial.objective.state_dict())
    trial.objective.apply_update(update)
    after = trial.objective.state_dict()
    moved = {key for key in after if not torch.equal(after[key], before[key])}
    parts = {part for part in MOVED.get(name, ()) if any(k.startswith(part) for k in moved)}
    assert parts == MOVED.get(name, set())
    assert all(any(key.startswith(part) for part in parts) for key in moved)


@every
def test_saved_and_loaded_it_goes_on_the_same(name):
    a, b = after_some_steps(name), Trial(name, seed=1)
    b.objective.load_state_dict(copy.deepcopy(a.objective.state_dict()))
    b.student, b.teacher = a.student, a.teacher
    for seed in (7, 8):
        batch = image_batch(8, seed=seed)
        with torch.no_grad():
            (x, update_a), (y, update_b) = a.loss(batch), b.loss(batch)
        assert torch.equal(x, y)
        a.objective.apply_update(update_a)
        b.objective.apply_update(update_b)


@every
def test_under_autocast_it_is_nearly_the_same(name):
    trial, batch = after_some_steps(name), image_batch(8, seed=9)
    with torch.no_grad():
        loss, _ = trial.loss(batch)
        with torch.autocast("cpu", torch.bfloat16):
            rough, update = trial.loss(batch)
    assert rough.dtype == torch.float32
    near = 0.1 if name == "w_mse" else 0.02  # whitening enlarges what is small
    torch.testing.assert_close(rough, loss, rtol=0.1, atol=near)
    trial.objective.apply_update(update)


def test_losses_are_of_float32_whatever_is_around_them():
    owner = torch.arange(6).repeat_interleave(2)
    a, b = randn(12, 4), randn(12, 4)
    images_, masked = randn(3, 4, 5), torch.ones(3, 4).bool()
    positive, negative = relations(owner, owner)
    losses = {
        "vicreg": lambda: vicreg_loss(a, b, (25.0, 25.0, 1.0)),
        "barlow_twins": lambda: barlow_twins_loss(a, b, 0.01),
        "simclr": lambda: nt_xent(a, positive, negative, 0.2),
        "byol": lambda: byol_loss(a, b),
        "info_nce": lambda: info_nce(a, b, owner, 0.2),
        "moco_v3": lambda: moco_loss(a.view(6, 2, 4), b.view(6, 2, 4), owner[::2], 0.2),
        "w_mse": lambda: w_mse_loss(a, b, (torch.arange(12),)),
        "swav": lambda: swapped_prediction(a.view(6, 2, 4), b.view(6, 2, 4), 0.1),
        "sinkhorn": lambda: sinkhorn(a, 0.1),
        "ibot": lambda: patch_loss(a, b, masked, 0.1),
        "instance": lambda: instance_loss(a, b, a, positive, 0.1),
        "gmml": lambda: gmml_loss(images_, images_ + 1, masked),
        "sigreg": lambda: sigreg(a, b[:4]),
        "koleo": lambda: koleo(a, negative),
        "cassle": lambda: contrast(a, b, owner, 0.2),
    }
    exact = {name: loss() for name, loss in losses.items()}
    with torch.autocast("cpu", torch.bfloat16):
        for name, loss in losses.items():
            assert torch.equal(loss(), exact[name]), name


# -- heads, banks, settings ---------------------------------------------------------------------------------


def test_a_teacher_s_head_follows():
    head = mlp(4, 6, 2)
    averaged = Averaged(head, 0.9)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter += 1.0
    old = [parameter.clone() for parameter in averaged.parameters()]
    averaged.follow(head)
    for now, before, new in zip(averaged.parameters(), old, head.parameters(), strict=True):
        torch.testing.assert_close(now, 0.9 * before + 0.1 * new)


def test_a_bank_holds_the_newest():
    bank, kept = Bank(5, 2), []
    for size in (2, 2, 3, 9, 1, 0, 4):
        vectors, entities = randn(size, 2), torch.randint(99, (size,), generator=G)
        bank.push(vectors, entities)
        kept = [*kept, *zip(vectors.tolist(), entities.tolist(), strict=True)][-5:]
        assert int(bank.there.sum()) == len(kept)
        there = bank.vectors[bank.there].tolist(), bank.entities[bank.there].tolist()
        assert sorted(zip(*there, strict=True)) == sorted(kept)


def test_an_image_is_never_its_own_negative():
    """Where batch and bank hold nothing but its own entity's, a look has nothing to tell apart."""
    trial, batch = Trial("instance"), image_batch(4)
    for _ in range(3):
        trial.objective.apply_update(trial.loss(batch)[1])
    assert float(trial.loss(batch)[0].detach()) > 0
    batch.index["entity_B"][:] = trial.objective.bank.entities[:] = 5
    assert float(trial.loss(batch)[0].detach()) == 0


def test_byol_does_not_predict_what_all_images_share():
    trial, batch = Trial("byol"), image_batch(8)
    before = trial.loss(batch)[0]
    with torch.no_grad():
        trial.objective.averaged.head.layers[-1].bias += 3.0
    torch.testing.assert_close(trial.loss(batch)[0], before, rtol=1e-4, atol=1e-5)


def test_of_few_images_few_dimensions_are_whitened():
    trial = Trial("w_mse")
    trial.loss(image_batch(4))[0].backward()
    slope = trial.objective.head.layers[-1].bias.grad, trial.objective.head.layers[-1].weight.grad
    assert (slope[1][:2] != 0).any() and (slope[1][2:] == 0).all() and (slope[0][2:] == 0).all()


def test_a_batch_that_is_larger_than_a_part_is_cut(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "learning.objectives.w_mse.w_mse_loss",
        lambda a, b, parts: seen.extend(parts) or (a - b).sum(),
    )
    Trial("w_mse").loss(image_batch(40))
    assert [len(part) for part in seen] == [20, 20]
    assert sorted(torch.cat(seen).tolist()) == list(range(40))


def test_without_a_previous_release_cassle_costs_nothing():
    objective = Trial("cassle").objective
    loss, update = objective(Patches(), None, image_batch(4))
    assert float(loss) == 0 and not loss.requires_grad and update == {}


def test_dino_asks_for_what_it_is_set_to():
    plain, full = Trial("dino").objective.needs, Trial("dino_v2").objective.needs
    assert (plain.small, plain.patches, plain.rows) == (0, 0.0, False)
    assert (full.small, full.patches, full.rows, full.teacher) == (2, 0.5, True, True)


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(SettingsError, match=r"subbatch is 64; to whiten projection = 40"):
        images.WMseConfig(projection=40)
    with pytest.raises(SettingsError, match=r"cassle.*name another objective"):
        LearnerConfig(objective=(images.CassleConfig(),))
    LearnerConfig(objective=(images.CassleConfig(), VicregConfig()))
