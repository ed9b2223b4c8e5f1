"""Stepping over a window is encoding it, in PyTorch and in ONNX Runtime."""

import copy
import functools

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learning import encoders, export
from learning.compatibility import mean_cosine, neighbour_overlap, procrustes, rotate
from learning.config import GruConfig, LinearRecurrenceConfig
from learning.encoders.fused_gru import fused_gru
from learning.kinds.events import pad, subset
from learning.running import Moments
from schemas.stream import Shape
from tests.learning.streams import random_windows

L = 16
SMALL = {"dim": 8, "hidden": 12, "window": L, "category_dim": 3, "bucket_bits": 4}
CONFIGS = {
    "gru": GruConfig(**SMALL),
    "linear": LinearRecurrenceConfig(**SMALL, layers=2),
}
SHAPES = {"both": Shape(2, 2), "categories": Shape(0, 1), "numbers": Shape(1, 0)}
CASES = [("gru", "both"), ("gru", "categories"), ("linear", "both"), ("linear", "numbers")]


@functools.cache
def built(config: str, shape: str):
    """An encoder with admitted buckets and a normaliser, and its ONNX sessions."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        encoder = encoders.build(CONFIGS[config], SHAPES[shape]).eval()
        if SHAPES[shape].categories:
            encoder.fields.admitted.copy_(torch.rand(encoder.fields.admitted.shape) < 0.5)
    moments = Moments(encoder.fields.scalar_width)
    windows = random_windows(np.random.default_rng(0), 50, SHAPES[shape], L)
    moments.add(encoder.fields, pad(windows, encoder.config.state))
    encoder.fields.renormalise(*moments.mean_and_scale())
    graphs = export.export(encoder, {"stream": "test"})
    return encoder, graphs, tuple(export.session(g) for g in graphs.values())


@torch.no_grad()
def differences(encoder, sessions, windows) -> list[float]:
    view = pad(windows, encoder.config.state)
    z_BD, _, extra = encoder(view)
    onnx_z, onnx_state = export.run(sessions[0], view)
    found = [np.abs(onnx_z - z_BD.numpy()).max(), np.abs(onnx_state - extra["state"].numpy()).max()]
    torch_state = ort_state = view["state"]
    for t, record in enumerate(export.stepped(encoder, view)):
        by_torch = encoder.step({**record, "state": torch_state})
        by_ort = export.run(sessions[1], {**record, "state": ort_state})
        torch_state, ort_state = by_torch.extra["state"], torch.from_numpy(by_ort[1])
        last = (view["length"] == t + 1).numpy()
        if last.any():
            found.append(np.abs(by_torch.z_BD.numpy() - z_BD.numpy())[last].max())
            found.append(np.abs(by_ort[0] - z_BD.numpy())[last].max())
    return [float(x) for x in found]


@pytest.mark.parametrize("case", CASES)
@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**32), entities=st.integers(1, 5), longest=st.integers(1, L))
def test_stepping_over_a_window_is_encoding_it(case, seed, entities, longest):
    encoder, _, sessions = built(*case)
    shape = SHAPES[case[1]]
    windows = random_windows(np.random.default_rng(seed), entities, shape, longest)
    assert max(differences(encoder, sessions, windows)) <= 1e-5


@pytest.mark.parametrize("case", CASES)
def test_parity_and_names_of_a_release(case):
    encoder, graphs, _ = built(*case)
    windows = random_windows(np.random.default_rng(3), 9, SHAPES[case[1]], L)
    assert export.parity(encoder, graphs, windows) <= 1e-5
    model = onnx.load_from_string(graphs["encode"])
    assert [i.name for i in model.graph.input] == list(export.inputs("encode", encoder))
    assert [o.name for o in model.graph.output] == ["embedding", "new_state"]
    assert {p.key: p.value for p in model.metadata_props}["stream"] == "test"


@pytest.mark.parametrize("case", [CASES[0], CASES[2]])
def test_swapped_initialisers_compute_what_a_fresh_export_does(case):
    encoder, _, _ = built(*case)
    other = encoders.build(encoder.config, encoder.shape).eval()
    swapped = export.export(other, {})
    view = pad(random_windows(np.random.default_rng(4), 5, SHAPES[case[1]], L), other.config.state)
    anew = export.session(export.fresh(other, "encode").SerializeToString())
    for a, b in zip(
        export.run(export.session(swapped["encode"]), view), export.run(anew, view), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_parity_sees_weights_that_are_not_in_the_graph():
    encoder, graphs, _ = built(*CASES[0])
    windows = random_windows(np.random.default_rng(3), 4, SHAPES["both"], L)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        other = encoders.build(encoder.config, encoder.shape).eval()
    assert export.parity(other, graphs, windows) > 1e-2


@pytest.mark.parametrize("case", CASES)
def test_padding_and_company_change_nothing(case):
    encoder, _, _ = built(*case)
    windows = random_windows(np.random.default_rng(6), 8, SHAPES[case[1]], L)
    together = encoder(pad(windows, encoder.config.state))
    for b in range(8):
        alone = encoder(pad(subset(windows, np.array([b])), encoder.config.state))
        torch.testing.assert_close(alone.z_BD[0], together.z_BD[b], atol=2e-6, rtol=0)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("value", [np.inf, -np.inf, 3.4e38, -3.4e38, np.nan, 0.0])
def test_no_number_makes_a_vector_that_is_not_finite(case, value):
    encoder, _, sessions = built(*case)
    view = pad(
        random_windows(np.random.default_rng(7), 4, SHAPES[case[1]], L), encoder.config.state
    )
    view["numbers"][:] = value
    z_BD, h_BTD, _ = encoder(view)
    assert z_BD.isfinite().all()
    assert h_BTD.isfinite().all()
    assert np.isfinite(export.run(sessions[0], view)[0]).all()
    torch.testing.assert_close(z_BD.norm(dim=1), torch.ones(4))


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_a_new_normaliser_does_not_move_the_function(case):
    encoder, _, _ = built(*case)
    other = encoders.build(encoder.config, encoder.shape)
    other.load_state_dict(encoder.state_dict())
    view = pad(
        random_windows(np.random.default_rng(8), 6, SHAPES[case[1]], L), encoder.config.state
    )
    width = encoder.fields.scalar_width
    other.fields.renormalise(torch.linspace(-1, 2, width), torch.linspace(0.3, 3, width))
    torch.testing.assert_close(other(view).z_BD, encoder(view).z_BD, atol=1e-5, rtol=0)


def test_a_bucket_not_admitted_is_unknown():
    encoder, _, _ = built("gru", "both")
    view = pad(random_windows(np.random.default_rng(9), 3, SHAPES["both"], L), encoder.config.state)
    rows = encoder.fields.category_rows(view)
    buckets = 1 << encoder.config.bucket_bits
    for field in range(2):
        at, hashes = rows[..., field] - field * (buckets + 2), view["categories"][..., field]
        gone = view["missing"][..., field]
        assert (at[gone] == buckets + 1).all()
        known = encoder.fields.admitted[hashes % buckets + field * (buckets + 2)]
        assert (at[~gone & known] == (hashes % buckets)[~gone & known]).all()
        assert (at[~gone & ~known] == buckets).all()


@torch.no_grad()
def test_procrustes_finds_a_rotation_and_folds_it_in():
    encoder, _, _ = built("gru", "both")
    turned = encoders.build(encoder.config, encoder.shape).eval()
    turned.load_state_dict(encoder.state_dict())
    r_DD, _ = torch.linalg.qr(
        torch.randn(8, 8, generator=torch.Generator().manual_seed(0)).double()
    )
    rotate(turned, r_DD)
    view = pad(random_windows(np.random.default_rng(10), 60, SHAPES["both"], L), 12)
    old, new = encoder(view).z_BD, turned(view).z_BD
    torch.testing.assert_close(new, (old.double() @ r_DD).float(), atol=1e-5, rtol=0)
    assert mean_cosine(old, new) < 0.9
    assert neighbour_overlap(old, new) > 0.99
    rotate(turned, procrustes(new, old))
    torch.testing.assert_close(turned(view).z_BD, old, atol=1e-5, rtol=0)


@pytest.mark.parametrize("before", [None, torch.nn.Linear(5, 5)])
def test_the_fused_gru_is_torch_s_gradients_included(before):
    generator = torch.Generator().manual_seed(0)
    gru = torch.nn.GRU(5, 5, batch_first=True)
    first = before or torch.nn.Identity()
    results = []
    for run in (lambda x, h: gru(first(x), h[None])[0], lambda x, h: fused_gru(x, h, gru, before)):
        generator.manual_seed(1)
        x = torch.randn(3, 7, 5, generator=generator).requires_grad_()
        h = torch.randn(3, 5, generator=generator).requires_grad_()
        out = run(x, h)
        weights = torch.randn(out.shape, generator=generator)
        learnt = [*gru.parameters(), *first.parameters()]
        slopes = torch.autograd.grad((out * weights).sum(), [x, h, *learnt])
        results.append([out, *slopes])
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_the_folded_path_of_training_is_the_released_function():
    encoder = copy.deepcopy(built("gru", "both")[0])
    windows = random_windows(np.random.default_rng(0), 50, SHAPES["both"], L)
    view = pad(windows, encoder.config.state)
    released, trained = encoder.eval()(view), encoder.train()(view)
    for a, b in ((released.z_BD, trained.z_BD), (released.h_BTD, trained.h_BTD)):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
