"""Losses of graphs, each against the formula of its paper, written plainly."""

import msgspec
import pytest
import torch
import torch.nn.functional as F

from learning.config import BandanaConfig, GraceConfig, GraphmaeConfig
from learning.contract import Batch, Output
from learning.objectives.bandana import Bandana, bandana_loss
from learning.objectives.grace import grace_loss
from learning.objectives.graphmae import Graphmae, scaled_cosine_error
from learning.objectives.node2vec import pairs, skip_gram
from schemas.errors import SettingsError
from schemas.stream import Shape

G = torch.Generator().manual_seed(0)
NODED = Shape(1, 1, graph=True, node_numbers=3, node_categories=1)


def randn(*size: int) -> torch.Tensor:
    return torch.randn(*size, generator=G)


def test_grace_is_the_authors_formula():
    """A node's view against its other one, over all of both views but itself; both ways round."""
    a, b, t = randn(6, 4), randn(6, 4), 0.4

    def semi(u, v):
        each = []
        for i in range(6):
            cosine = lambda x, y: F.cosine_similarity(x, y, dim=0) / t  # noqa: E731
            positive = cosine(u[i], v[i]).exp()
            between = sum(cosine(u[i], v[k]).exp() for k in range(6) if k != i)
            within = sum(cosine(u[i], u[k]).exp() for k in range(6) if k != i)
            each.append(-(positive / (positive + between + within)).log())
        return torch.stack(each)

    expected = (semi(a, b) + semi(b, a)).mean() / 2
    torch.testing.assert_close(grace_loss(a, b, t), expected)


def test_grace_compares_two_views():
    with pytest.raises(SettingsError, match=r"slices is 3"):
        GraceConfig(slices=3)


def test_the_scaled_cosine_error_is_the_authors_formula():
    guess, truth = randn(5, 4), randn(5, 4)
    each = [(1 - (x @ y) / (x.norm() * y.norm())) ** 3 for x, y in zip(guess, truth, strict=True)]
    torch.testing.assert_close(scaled_cosine_error(guess, truth, 3.0), torch.stack(each).mean())


def test_bandana_is_the_authors_formula():
    edge, none, share = randn(6), randn(4), torch.rand(6, generator=G)
    expected = sum(-share[i] * torch.sigmoid(edge[i]).log() for i in range(6)) / 6
    expected = expected + sum(-(1 - torch.sigmoid(none[i])).log() for i in range(4)) / 4
    torch.testing.assert_close(bandana_loss(edge, share, none), expected)


def test_skip_gram_costs_what_so_many_random_negatives_cost_on_average():
    near, far = randn(3), randn(3, 5)
    same = torch.zeros(3, 5).bool()
    same[1, 2] = True
    each = []
    for i in range(3):
        away = [-torch.sigmoid(-far[i, j]).log() for j in range(5) if not same[i, j]]
        each.append(-torch.sigmoid(near[i]).log() + 4.0 * torch.stack(away).mean())
    torch.testing.assert_close(skip_gram(near, far, same, 4.0), torch.stack(each).mean())


def test_pairs_are_places_of_one_walk_within_the_context():
    walks = torch.tensor([[0, 1, 2, 1], [3, 3, 4, 5]])
    expected = []
    for walk in walks.tolist():
        for i, a in enumerate(walk):
            expected += [(a, b) for j, b in enumerate(walk) if 0 < abs(i - j) <= 2 and a != b]
    a, b = pairs(walks, 2)
    assert sorted(zip(a.tolist(), b.tolist(), strict=True)) == sorted(expected)


def path_batch(name: str, **index: torch.Tensor) -> tuple[Batch, dict[str, torch.Tensor]]:
    """Nodes 0 - 1 - 2 - 3 on a line, and 4 alone; rows of a table that has node 4's place blank."""
    near = torch.tensor([[1, -1], [0, 2], [1, 3], [2, -1], [-1, -1]])
    view = {
        "length": torch.tensor([1, 2, 2, 1, 0]),
        "bandwidth_BT": torch.rand(5, 2, generator=G),
        "table_numbers": torch.cat([randn(4, 3), torch.full((1, 3), torch.nan)]),
        "table_categories": torch.tensor([[1], [2], [3], [258], [0]]),
        "table_missing": torch.tensor([[0], [0], [1], [0], [1]]).bool(),
    }
    index = {"near_UT": near, "table_U": torch.arange(5), **index}
    return Batch({name: view}, index, {}, 0), view


def test_graphmae_foretells_hidden_nodes_from_codes_that_were_not_hidden():
    z = F.normalize(randn(5, 6), dim=1).requires_grad_()
    masked = torch.tensor([True, False, True, False, True])
    batch, view = path_batch("masked", masked_U=masked)
    torch.manual_seed(0)
    objective = Graphmae(GraphmaeConfig(hidden=7, bucket_bits=2, gamma=2.0), NODED, 6)
    loss, update = objective(lambda _: Output(z, z, {}), None, batch)
    loss.backward()
    assert (z.grad[[0, 2, 4]] == 0).all() and (z.grad[[1, 3]].abs().sum(1) > 0).all()
    code = objective.code(z * 6**0.5)
    code[masked] = objective.hidden
    each = []
    for row, near in ((0, [1]), (2, [1, 3])):
        mean = code[near].mean(0)
        guess = objective.guess(torch.relu(objective.own(code[row]) + objective.far(mean)))
        numbers = view["table_numbers"][row]
        truth = [float(torch.sign(x) * torch.log1p(x.abs())) for x in numbers]
        truth += [0.0, float(row == 0), 0.0, 0.0]  # node 0 is of bucket 1, node 2's is missing
        each.append((1 - F.cosine_similarity(guess, torch.tensor(truth), dim=0)) ** 2)
    torch.testing.assert_close(loss, torch.stack(each).mean())
    objective.apply_update(update)
    known = view["table_numbers"][:4]
    y = torch.sign(known) * torch.log1p(known.abs())
    torch.testing.assert_close(objective.centre, y.mean(0))


def test_a_number_that_no_node_of_the_batch_has_keeps_its_centre_and_size():
    z = F.normalize(randn(5, 6), dim=1)
    batch, view = path_batch("masked", masked_U=torch.tensor([True, False, True, False, True]))
    objective = Graphmae(GraphmaeConfig(), NODED, 6)
    found = []
    for _ in range(3):
        _, update = objective(lambda _: Output(z, z, {}), None, batch)
        objective.apply_update(update)
        found.append((float(objective.centre[1]), float(objective.size[1])))
        view["table_numbers"][:, 1] = torch.nan
    assert found[0][0] != 0.0 and found[1:] == found[:1] * 2


def test_graphmae_needs_something_to_foretell():
    with pytest.raises(SettingsError, match=r"\[\[stream\.node\]\]"):
        Graphmae(
            GraphmaeConfig(), msgspec.structs.replace(NODED, node_numbers=0, node_categories=0), 6
        )


def test_bandana_foretells_bandwidths_that_sum_to_one_from_both_ends():
    z = F.normalize(randn(5, 6), dim=1)
    batch, view = path_batch("bandwidth")
    torch.manual_seed(0)
    objective = Bandana(BandanaConfig(hidden=7), 6)
    state = torch.get_rng_state()
    loss, _ = objective(lambda _: Output(z, z, {}), None, batch)
    ends = [(0, 0, 1), (1, 0, 0), (1, 1, 2), (2, 0, 1), (2, 1, 3), (3, 0, 2)]
    torch.set_rng_state(state)
    other = torch.randint(5, (6,)).tolist()
    score = lambda a, b: objective.head(6 * z[a] * z[b])[0]  # noqa: E731
    near = {a: [b for c, _, b in ends if c == a] for a in range(5)}
    edge = torch.stack([score(a, b) for a, _, b in ends])
    share = torch.stack([view["bandwidth_BT"][a, t] / view["length"][a] for a, t, _ in ends])
    none = [
        score(a, o) for (a, _, _), o in zip(ends, other, strict=True) if o != a and o not in near[a]
    ]
    assert 0 < len(none) < 6
    torch.testing.assert_close(loss, bandana_loss(edge, share, torch.stack(none)))


def test_nodes_that_all_know_each_other_have_no_pair_that_is_no_edge():
    z = F.normalize(randn(2, 6), dim=1)
    view = {"length": torch.tensor([1, 1]), "bandwidth_BT": torch.ones(2, 1)}
    batch = Batch({"bandwidth": view}, {"near_UT": torch.tensor([[1], [0]])}, {}, 0)
    loss, _ = Bandana(BandanaConfig(), 6)(lambda _: Output(z, z, {}), None, batch)
    assert torch.isfinite(loss)


def test_no_edge_in_the_batch_costs_nothing():
    z = F.normalize(randn(5, 6), dim=1)
    masked = torch.tensor([True, False, True, False, True])
    for objective, name in (
        (Bandana(BandanaConfig(), 6), "bandwidth"),
        (Graphmae(GraphmaeConfig(), NODED, 6), "masked"),
    ):
        batch, _ = path_batch(name, masked_U=masked)
        batch.index["near_UT"] = torch.full((5, 2), -1)
        loss, _ = objective(lambda _: Output(z, z, {}), None, batch)
        assert float(loss.detach()) == 0.0
    assert len(pairs(torch.tensor([[1, 1]]), 3)[0]) == 0
