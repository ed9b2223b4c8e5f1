"""An image to a vector: any backbone of timm, its pooled features, one linear layer.

Backbones: timm, Wightman 2019, doi:10.5281/zenodo.4414861. A ResNet's BatchNorm becomes GroupNorm, Wu & He 2018,
arXiv:1803.08494: statistics of batches drift in a stream, and a vector would depend on what came beside it. Small
images keep their resolution in the stem, as in He et al. 2016, arXiv:1512.03385, section 4.2.

Shapes: M looks, s pixels on a side, T patches (or places of a CNN's last map), F features."""

import difflib
import math
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import timm
import torch
import torch.nn.functional as F
from timm.layers.norm_act import BatchNormAct2d, GroupNormAct
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.resnet import ResNet
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from learning.config_base import refuse
from learning.config_images import TimmConfig
from learning.contract import Output, View
from learning.encoders.base import Encoder
from learning.pixels import floats, resized
from schemas.stream import Shape

SMALL = 64  # pixels on a side, up to which stem = "auto" halves the resolution and no more
NARROW = {
    "resnet10t": 0.5
}  # width where none is set: made for a CPU, and better there for the same time
GROUP, GROUPS = 8, 32  # channels of a group, at least; groups, at most
HEADS = ("fc.", "head.", "classifier.")  # of weights that came with a classifier
COUNTED = ".num_batches_tracked"
PLAIN = (0.5, 0.25)  # mean and deviation of pixels


class TimmEncoder(Encoder):
    """Views: "pixels", uint8 [M, H, W, 3] of any size, or "image", float [M, 3, s, s] in 0..1; and "masked_BT", which
    patches are hidden: from a ViT by a token, from a CNN by the mean colour."""

    graphs = ("encode",)
    unexported = ("mask_token",)
    config: TimmConfig
    mean: Tensor
    deviation: Tensor

    def __init__(self, shape: Shape, config: TimmConfig) -> None:
        super().__init__(shape, config)
        self.backbone: Any = backbone(config)
        self.width = self._probed()
        self._end(self.width)
        if isinstance(self.backbone, VisionTransformer):
            self.mask_token = nn.Parameter(torch.randn(self.width) * 0.02)
        mean, deviation = _statistics(self.backbone, config)
        self.register_buffer("mean", mean.reshape(3, 1, 1), persistent=False)
        self.register_buffer("deviation", deviation.reshape(3, 1, 1), persistent=False)

    @torch.no_grad()
    def _probed(self) -> int:
        """Width of the pooled features; sets how many patches there are, and whether smaller looks fit."""
        size = self.config.size
        self.backbone.eval()
        try:
            map_ = self.backbone.forward_features(torch.zeros(1, 3, size, size))
            width: int = self.backbone.forward_head(map_, pre_logits=True).shape[1]
            shape = self._tokens(map_).shape
            self._grid, self._map_width = math.isqrt(shape[1]), shape[2]
        except (AssertionError, AttributeError, RuntimeError, ValueError) as error:
            needs = f"it cannot look at {size} × {size} pixels (encoder.size): {error}"
            raise refuse("encoder.backbone", repr(self.config.backbone), needs) from None
        try:
            self.backbone.forward_features(torch.zeros(1, 3, size // 2, size // 2))
            self._smaller = True
        except (AssertionError, RuntimeError, ValueError):
            self._smaller = False
        self.backbone.train()
        return width

    def grid(self) -> int:
        """Patches on a side: T is its square."""
        return self._grid

    @property
    def at_once(self) -> int:
        """So that they take as much memory whatever their size."""
        return max(8, min(1024, (1 << 20) // self.config.size**2))

    @property
    def token_width(self) -> int:
        return self._map_width

    @property
    def patch(self) -> int:
        """Sides of looks must be multiples of it; 0: looks of any size come to `size`."""
        if isinstance(self.backbone, VisionTransformer):
            patch: int = self.backbone.patch_embed.patch_size[0]
            return patch
        return 1 if self._smaller else 0

    def begin(self) -> None:
        if self.config.weights:
            load(self, Path(self.config.weights))

    def train(self, mode: bool = True) -> "TimmEncoder":
        """BatchNorm that was kept stays as it was loaded: its statistics never move."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, view: View) -> Output:
        x = floats(view["pixels"]) if "pixels" in view else view["image"]
        if "pixels" in view or not self.patch:
            x = resized(x, self.config.size)
        x = (x - self.mean) / self.deviation
        hidden = view.get("masked_BT")
        if isinstance(self.backbone, VisionTransformer):
            map_ = self._transformed(self.backbone, x, hidden)
        else:
            if hidden is not None:
                x = x * F.interpolate(self._shown(hidden), x.shape[2:])
            map_ = self.backbone.forward_features(x.contiguous(memory_format=torch.channels_last))
        pooled = self.backbone.forward_head(map_, pre_logits=True)
        return self._output(pooled, self._tokens(map_), {"features": pooled})

    def _shown(self, hidden: Tensor) -> Tensor:
        """[M, 1, g, g] 1.0 where a patch is seen."""
        return torch.logical_not(hidden).float().reshape(len(hidden), 1, self._grid, self._grid)

    def _tokens(self, map_: Tensor) -> Tensor:
        """The backbone's last map as [M, T, F], without tokens that are no patch."""
        if map_.ndim == 3:
            return map_[:, getattr(self.backbone, "num_prefix_tokens", 0) :]
        if str(getattr(self.backbone, "output_fmt", "NCHW")) == "NHWC":
            return map_.flatten(1, 2)
        return map_.flatten(2).transpose(1, 2) if map_.ndim == 4 else map_.unsqueeze(1)

    def _transformed(self, of: Any, x: Tensor, hidden: Tensor | None) -> Tensor:
        """`of.forward_features`, with hidden patches and at any multiple of its patch."""
        grid = x.shape[2] // self.patch
        x = of.patch_embed(x)
        x = x.flatten(1, 2) if x.ndim == 4 else x  # of one that takes images of any size
        if hidden is not None:
            x = torch.where(hidden.unsqueeze(2), self.mask_token.to(x.dtype), x)
        some = [t for t in (of.cls_token, of.reg_token) if t is not None]
        before = [t.expand(x.shape[0], -1, -1) for t in some]
        place = of.pos_embed
        if place is not None and grid != self._grid:
            apart = 0 if of.no_embed_class else of.num_prefix_tokens
            place = resample_abs_pos_embed(place, [grid, grid], num_prefix_tokens=apart)
        if place is not None and of.no_embed_class:
            x = x + place
        x = torch.cat([*before, x], 1)
        if place is not None and not of.no_embed_class:
            x = x + place
        x = of.norm_pre(of.patch_drop(of.pos_drop(x)))
        tokens: Tensor = of.norm(of.blocks(x))
        return tokens


def backbone(config: TimmConfig) -> Any:
    """timm's model without its classifier, as the settings change it. Its weights come from torch's generator."""
    name = config.backbone
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), 3)
        needs = (
            f"timm has no such model{f', but {near}' if near else ''}. "
            "python -c \"import timm; print(timm.list_models('resnet*'))\" lists those that begin so"
        )
        raise refuse("encoder.backbone", repr(name), needs)
    options: dict[str, Any] = {"img_size": config.size} if _fixed(name) else {}
    if config.patch:
        options["patch_size"] = config.patch
    width = config.width or (1.0 if config.weights else NARROW.get(name, 1.0))
    if width != 1:
        channels = [max(GROUP, round(c * width / GROUP) * GROUP) for c in (64, 128, 256, 512)]
        options |= {"channels": channels, "stem_width": channels[0] // 2}
    try:
        made: Any = timm.create_model(name, pretrained=False, num_classes=0, **options)
    except (AssertionError, TypeError, ValueError) as error:
        needs = f"timm cannot make it with {options}: {error}. Mind size, patch and width"
        raise refuse("encoder.backbone", repr(name), needs) from None
    if isinstance(made, VisionTransformer):
        made.patch_embed.strict_img_size = False  # small looks: see TimmEncoder._transformed
        return made
    if isinstance(made, ResNet):
        _restem(made, config)
    if config.norm == "group":
        group_normed(made)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.num_batches_tracked = None  # it counts nothing: see TimmEncoder.train
    return made.to(memory_format=torch.channels_last)


def _restem(of: Any, config: TimmConfig) -> None:
    """A stem that shrinks the image less than the ResNet's own, which is made for 224 pixels."""
    stem = config.stem
    if stem == "auto":
        stem = "half" if config.size <= SMALL else "own"
    if stem != "own":
        stride = 1 if stem == "small" else 2
        of.conv1 = nn.Conv2d(3, of.bn1.num_features, 3, stride, 1, bias=False)
        nn.init.kaiming_normal_(of.conv1.weight, mode="fan_out", nonlinearity="relu")
        of.maxpool = nn.Identity()


def group_normed(module: nn.Module) -> None:
    """Puts GroupNorm in the place of every BatchNorm2d inside, under its name; activations fused into it stay."""
    for name, child in list(module.named_children()):
        if not isinstance(child, nn.BatchNorm2d):
            group_normed(child)
            continue
        channels = child.num_features
        groups = max(1, min(GROUPS, channels // GROUP))
        while channels % groups:
            groups -= 1
        if isinstance(child, BatchNormAct2d):
            new: Any = GroupNormAct(channels, groups)
            new.drop, new.act = child.drop, child.act
        else:
            new = nn.GroupNorm(groups, channels)
        with torch.no_grad():  # some begin at 0: the last one of a block
            new.weight.copy_(child.weight)
            new.bias.copy_(child.bias)
        setattr(module, name, new)


def load(encoder: TimmEncoder, path: Path) -> None:
    """Puts weights of a file into the encoder: a whole encoder's of afresh, or a backbone's of timm."""
    config = encoder.config
    try:
        found = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        needs = f"it cannot be read as safetensors: {error}"
        raise refuse("encoder.weights", repr(str(path)), needs) from None
    into: nn.Module = encoder
    if not any(name.startswith("backbone.") for name in found):
        into = encoder.backbone
        of_backbone = (k for k in found if not k.startswith(HEADS) and not k.endswith(COUNTED))
        found = {k: found[k] for k in of_backbone}
        if isinstance(into, VisionTransformer):  # positions of another size
            found = checkpoint_filter_fn(found, into)
    wanted = into.state_dict()
    lacking = sorted(wanted.keys() - found.keys())
    beyond = sorted(found.keys() - wanted.keys())
    unlike = sorted(k for k in wanted.keys() & found.keys() if wanted[k].shape != found[k].shape)
    if lacking or beyond or unlike:
        needs = (
            f"its tensors are not those of {config.backbone} (size {config.size}, stem {config.stem}, norm "
            f"{config.norm}): lacking {lacking[:3]}, unknown {beyond[:3]}, of another shape {unlike[:3]}; with "
            'BatchNorm set norm = "own" and stem = "own"'
        )
        raise refuse("encoder.weights", repr(str(path)), needs)
    into.load_state_dict(found)


def _fixed(name: str) -> bool:
    """Whether it is made for images of one size."""
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return bool(config and config.fixed_input_size)


def _statistics(of: Any, config: TimmConfig) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel, [3] each: with `weights` those that the backbone was made with."""
    known: dict[str, Any] = of.pretrained_cfg if config.weights else {}
    mean, deviation = known.get("mean", [PLAIN[0]] * 3), known.get("std", [PLAIN[1]] * 3)
    return torch.tensor(mean), torch.tensor(deviation)
