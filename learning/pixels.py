"""Pixels as tensors: bytes to floats, crops at another size, colours; all of it batched, each image by its own numbers.

Shapes: M images, [M, 3, H, W] float32 in 0..1; numbers of an image [M]."""

from typing import Any

import torch
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601: how bright each colour is


def floats(pixels: Tensor) -> Tensor:
    """uint8 [M, H, W, 3] -> float32 [M, 3, H, W] in 0..1."""
    return pixels.permute(0, 3, 1, 2).to(torch.float32) / 255.0


def resized(x: Tensor, size: int) -> Tensor:
    """The whole image, at size × size: bilinear, antialiased where it shrinks; the same where nothing does.

    The filter is Pillow's and F.interpolate's (antialias=True), as two matrix products, so that ONNX Runtime computes
    the same numbers at any H and W."""
    height, width = x.shape[2], x.shape[3]
    if not torch.compiler.is_exporting() and height == width == size:
        return x
    rows, columns = (_whole(length, size, x) for length in (height, width))
    return rows @ x @ columns.transpose(0, 1)


def cropped(x: Tensor, box_M4: Tensor, flip_M: Tensor, size: int) -> Tensor:
    """From each image the box (top, left, height, width; whole pixels) at size × size, mirrored where `flip_M` says."""
    top, left, height, width = box_M4.to(torch.float32).unbind(1)
    rows = _parts(top, height, x.shape[2], size)
    columns = _parts(left, width, x.shape[3], size)
    columns = torch.where(flip_M[:, None, None], columns.flip(1), columns)
    return rows.unsqueeze(1) @ x @ columns.transpose(1, 2).unsqueeze(1)


def _whole(length: int, size: int, like: Tensor) -> Tensor:
    shrinks: Any = torch.sym_max(length / size, 1.0)  # a symbol while exporting
    share = _triangles(0.0, length / size, shrinks, length, size, like)
    return share / share.sum(-1, keepdim=True)


def _parts(start_M: Tensor, length_M: Tensor, total: int, size: int) -> Tensor:
    """[M, size, total]: what is outside of the part has no share."""
    start, length = start_M[:, None, None], length_M[:, None, None]
    share = _triangles(start, length / size, (length / size).clamp(min=1.0), total, size, start_M)
    old = torch.arange(total, dtype=torch.float32, device=start_M.device)
    share = share * ((old >= start) & (old < start + length))
    return share / share.sum(-1, keepdim=True)


def _triangles(start: Any, ratio: Any, half: Any, total: int, size: int, like: Tensor) -> Tensor:
    """[..., size, total]: of each new pixel, how near each old one is to its centre, 1 to 0 at `half`."""
    new = torch.arange(size, dtype=torch.float32, device=like.device).unsqueeze(1)
    old = torch.arange(total, dtype=torch.float32, device=like.device)
    centre = start + (new + 0.5) * ratio - 0.5
    return torch.relu(1.0 - torch.abs(old - centre) / half)


def blurred(x: Tensor, sigma_M: Tensor) -> Tensor:
    """Gaussian, of each image its own deviation in pixels; at the edges over what is there."""

    def weights(length: int) -> Tensor:
        at = torch.arange(length, dtype=torch.float32, device=x.device)
        squared = (at.unsqueeze(1) - at).square()
        return torch.softmax(-squared / (2.0 * sigma_M.square())[:, None, None], -1).unsqueeze(1)

    return weights(x.shape[2]) @ x @ weights(x.shape[3]).transpose(2, 3)


def luma(x: Tensor) -> Tensor:
    """[M, 1, H, W]"""
    weights = torch.tensor(LUMA, device=x.device).reshape(1, 3, 1, 1)
    return (x * weights).sum(1, keepdim=True)


def jittered(x: Tensor, brightness_M: Tensor, contrast_M: Tensor, saturation_M: Tensor) -> Tensor:
    """In this order: times brightness; away from the image's mean luma by contrast; away from each pixel's luma by
    saturation; cut to 0..1 in the end. One affine map of the colours. Factors of 1 change nothing."""
    gain = brightness_M * contrast_M
    weights = torch.tensor(LUMA, device=x.device)
    own = (gain * saturation_M)[:, None, None] * torch.eye(3, device=x.device)
    grey = (gain * (1.0 - saturation_M))[:, None, None] * weights.expand(3, 3)
    offset = brightness_M * (1.0 - contrast_M) * luma(x).mean((1, 2, 3))
    colours = torch.baddbmm(offset[:, None, None], own + grey, x.flatten(2))
    return colours.clamp(0.0, 1.0).view_as(x)


def hue_shifted(x: Tensor, turns_M: Tensor) -> Tensor:
    """Hue turned by a share of the circle; saturation and value (of HSV) stay."""
    value, least = x.amax(1), x.amin(1)
    chroma = value - least
    red, green, blue = (x / chroma.clamp(min=1e-8).unsqueeze(1)).unbind(1)
    hue = torch.where(
        value == x[:, 0],
        green - blue,
        torch.where(value == x[:, 1], blue - red + 2.0, red - green + 4.0),
    )
    hue = hue + 6.0 * turns_M[:, None, None]
    channels = []
    for n in (5.0, 3.0, 1.0):
        k = torch.remainder(hue + n, 6.0)
        channels.append(value - chroma * torch.minimum(k, 4.0 - k).clamp(0.0, 1.0))
    return torch.stack(channels, 1)


def solarised(x: Tensor) -> Tensor:
    """What is light becomes dark."""
    return torch.where(x >= 0.5, 1.0 - x, x)


def salient(x: Tensor) -> Tensor:
    """[M, 1, H, W] bool: what is likely the object, without a label: far in colour from the image's border, and near
    its middle, more than the image's mean.

    Source of the prior: Wei et al. 2012, doi:10.1007/978-3-642-33712-3_3."""
    height, width = x.shape[2:]
    smooth = blurred(x, torch.full_like(x[:, 0, 0, 0], max(height, width) / 32))
    border = torch.cat([smooth[:, :, [0, -1]].flatten(2), smooth[:, :, :, [0, -1]].flatten(2)], 2)
    far = (smooth - border.mean(2)[:, :, None, None]).square().sum(1, keepdim=True).sqrt()
    down, along = (torch.linspace(-1, 1, n, device=x.device) for n in (height, width))
    middle = torch.exp(-(down.square().unsqueeze(1) + along.square()))
    seen = far * middle
    return seen > seen.mean((2, 3), keepdim=True)
