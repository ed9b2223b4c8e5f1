import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

from learning import encoders, export
from learning.compatibility import rotate
from learning.config_images import TimmConfig
from learning.encoders.image import TimmEncoder
from learning.kinds import plain
from learning.pixels import resized
from learning.student import embed
from schemas.errors import SettingsError
from schemas.stream import Shape
from tests.learning.images import SHAPE, SIDE, noise, windows_of

CONFIGS = {
    "resnet": TimmConfig(dim=8, size=SIDE, width=0.125, stem="small"),
    "vit": TimmConfig(dim=8, size=SIDE, backbone="test_vit", patch=4),
    "vit with registers": TimmConfig(dim=8, size=SIDE, backbone="test_vit4", patch=4),
    "own norm": TimmConfig(dim=8, size=SIDE, width=0.125, norm="own", stem="half"),
}


def made(name: str | TimmConfig, seed: int = 0) -> TimmEncoder:
    torch.manual_seed(seed)
    config = CONFIGS[name] if isinstance(name, str) else name
    encoder = encoders.build(config, SHAPE)
    assert isinstance(encoder, TimmEncoder)
    with torch.no_grad():
        for p in encoder.parameters():  # what begins at zero would hide what it belongs to
            p.add_(torch.randn_like(p) * 0.02)
    return encoder.eval()


def looks(n: int, size: int = SIDE, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((n, 3, size, size), np.float32))


@pytest.mark.parametrize("name", CONFIGS)
def test_an_image_becomes_a_unit_vector_its_patches_and_its_features(name):
    encoder = made(name)
    output = encoder({"image": looks(5)})
    assert output.z_BD.shape == (5, 8)
    assert torch.allclose(output.z_BD.norm(dim=1), torch.ones(5), atol=1e-6)
    assert output.h_BTD.shape == (5, encoder.grid() ** 2, encoder.width)
    assert output.extra["features"].shape == (5, encoder.width)


@pytest.mark.parametrize("name", CONFIGS)
def test_pixels_of_the_right_size_are_looks_of_the_same_colours(name):
    windows = windows_of(noise(np.random.default_rng(0), 3))
    encoder = made(name)
    view = plain(windows, encoder.config.state)
    floats = view["pixels"].permute(0, 3, 1, 2).float() / 255
    assert torch.equal(encoder(view).z_BD, encoder({"image": floats}).z_BD)
    assert torch.equal(embed(encoder, windows), encoder(view).z_BD)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 16), (37, 16), (64, 21), (5, 90)])
def test_resizing_is_that_of_torch_with_antialias(height, width):
    x = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(x, (16, 16), mode="bilinear", antialias=True, align_corners=False)
    assert torch.allclose(resized(x, 16), expected, atol=1e-6)


def test_resizing_to_the_same_size_changes_no_bit():
    x = looks(2)
    assert torch.equal(resized(x, SIDE), x)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_vector_does_not_depend_on_what_is_beside_it_even_in_training(name):
    encoder = made(name).train()
    x = looks(6)
    together = encoder({"image": x}).z_BD
    for i in range(6):
        assert torch.allclose(encoder({"image": x[i : i + 1]}).z_BD[0], together[i], atol=1e-5)


@pytest.mark.parametrize("name", ["resnet", "vit", "vit with registers"])
def test_hidden_patches_are_not_seen(name):
    encoder = made(name)
    grid = encoder.grid()
    assert grid > 1
    patch = SIDE // grid
    hidden = torch.zeros(1, grid * grid, dtype=torch.bool)
    hidden[0, grid + 1] = True  # second row, second column
    x, y = looks(1), looks(1)
    y[:, :, patch : 2 * patch, patch : 2 * patch] = 0.0
    seen = [encoder({"image": i}).z_BD for i in (x, y)]
    unseen = [encoder({"image": i, "masked_BT": hidden}).z_BD for i in (x, y)]
    assert (seen[0] - seen[1]).abs().max() > 1e-4
    assert torch.equal(unseen[0], unseen[1])
    none = encoder({"image": x, "masked_BT": torch.zeros_like(hidden)})
    assert torch.equal(none.z_BD, seen[0])


@pytest.mark.parametrize("name", ["resnet", "vit", "vit with registers"])
def test_smaller_looks_are_taken_at_their_own_size(name):
    output = made(name)({"image": looks(3, SIDE // 2)})
    assert output.z_BD.shape == (3, 8)
    assert output.h_BTD.shape[1] == (made(name).grid() // 2) ** 2


def test_a_backbone_made_for_one_size_sees_smaller_looks_enlarged():
    encoder = made(TimmConfig(dim=8, size=32, backbone="test_convnext"))
    small = looks(2, 16)
    assert encoder.patch == 0
    assert torch.equal(encoder({"image": small}).z_BD, encoder({"image": resized(small, 32)}).z_BD)


def test_no_batch_norm_is_left_and_kept_ones_are_frozen():
    assert not any(isinstance(m, nn.BatchNorm2d) for m in made("resnet").modules())
    own = made("own norm").train()
    norms = [m for m in own.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and not any(m.training for m in norms)
    before = {k: v.clone() for k, v in own.named_buffers()}
    own({"image": looks(4)})
    assert all(torch.equal(v, before[k]) for k, v in own.named_buffers())


def test_activations_fused_into_a_norm_stay():
    encoder = made(TimmConfig(dim=8, size=32, backbone="test_efficientnet"))
    acts = [m for m in encoder.modules() if type(m).__name__ == "GroupNormAct"]
    assert acts and any(not isinstance(m.act, nn.Identity) for m in acts)


@pytest.mark.parametrize(("stem", "grid"), [("small", 2), ("half", 1), ("auto", 1)])
def test_the_stem_says_how_much_resolution_is_left(stem, grid):
    assert made(TimmConfig(dim=8, size=16, width=0.125, stem=stem)).grid() == grid


@pytest.mark.parametrize("name", CONFIGS)
def test_a_release_computes_what_pytorch_does_and_takes_new_weights(name):
    windows = windows_of(noise(np.random.default_rng(1), 9))
    first, second = made(name), made(name, seed=1)
    graphs = export.export(first, {"release": "1"})
    again = export.export(second, {"release": "2"})
    assert list(graphs) == ["encode"]
    assert export.parity(first, graphs, windows) < 1e-5
    assert export.parity(second, again, windows) < 1e-5
    assert export.parity(first, again, windows) > 1e-3
    other = windows_of(noise(np.random.default_rng(2), 4, side=50))  # of another stream
    assert export.parity(second, again, other) < 1e-5


def test_a_graph_has_pixels_in_and_an_embedding_out():
    session = export.session(export.export(made("resnet"), {})["encode"])
    (pixels,), (embedding,) = session.get_inputs(), session.get_outputs()
    assert (pixels.name, pixels.type, pixels.shape[3]) == ("pixels", "tensor(uint8)", 3)
    assert all(isinstance(free, str) for free in pixels.shape[:3])
    assert embedding.name == "embedding" and embedding.shape[1] == 8


def test_a_rotation_folds_into_the_last_layer():
    encoder, view = made("resnet"), {"image": looks(5)}
    r_DD = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64)).Q
    wanted = encoder(view).z_BD.double() @ r_DD
    rotate(encoder, r_DD)
    assert torch.allclose(encoder(view).z_BD.double(), wanted, atol=1e-6)


def test_weights_of_a_file_are_begun_from(tmp_path):
    one = made("vit")
    whole, part = tmp_path / "whole.safetensors", tmp_path / "part.safetensors"
    safetensors.torch.save_file({k: v.contiguous() for k, v in one.state_dict().items()}, whole)
    of_backbone = {k: v.contiguous() for k, v in one.backbone.state_dict().items()}
    safetensors.torch.save_file({**of_backbone, "head.weight": torch.zeros(3, 3)}, part)
    config = {"dim": 8, "size": SIDE, "backbone": "test_vit", "patch": 4}
    for file in (whole, part):
        two = made(TimmConfig(**config, weights=str(file)), seed=7)
        two.begin()
        want, got = (e.backbone.state_dict() for e in (one, two))
        assert all(torch.equal(want[k], got[k]) for k in want)
    larger = made(TimmConfig(**{**config, "size": 32}, weights=str(part)))
    larger.begin()  # its positions are interpolated
    assert larger({"image": looks(1, 32)}).z_BD.isfinite().all()


def test_weights_that_do_not_fit_are_refused_with_what_differs(tmp_path):
    file = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"conv1.weight": torch.zeros(3)}, file)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no tensors")
    for weights, says in ((file, "lacking"), (broken, "safetensors"), (tmp_path / "no", "no")):
        with pytest.raises(SettingsError, match=f"encoder.weights.*{says}"):
            made(TimmConfig(dim=8, size=SIDE, weights=str(weights))).begin()


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (TimmConfig(backbone="resnet10"), r"no such model, but \[.*list_models"),
        (TimmConfig(backbone="test_vit", width=0.5), "cannot make it with"),
        (TimmConfig(backbone="resnet10t", patch=4), "cannot make it with"),
        (TimmConfig(backbone="test_vit", size=20, patch=8), "encoder.size|cannot make it"),
        (TimmConfig(backbone="hf-hub:someone/something"), "no such model"),
    ],
)
def test_a_backbone_that_cannot_be_is_refused(config, says):
    with pytest.raises(SettingsError, match=says):
        encoders.build(config, Shape(0, 1, side=SIDE))


def test_learners_of_other_kinds_do_not_load_timm():
    """It takes seconds and 200 MB."""
    code = (
        "import learning.field_learner, learning.compatibility, sys; print('timm' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
