"""Pixels as tensors: bytes to floats, and to another size."""

from typing import Any

import torch
from torch import Tensor


def floats(pixels: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W] in 0..1."""
    return pixels.permute(0, 3, 1, 2).to(torch.float32) / 255.0


def resized(x: Tensor, size: int) -> Tensor:
    """[B, C, H, W] -> [B, C, size, size]: bilinear, antialiased where it shrinks; the same where nothing does.

    The filter is Pillow's and F.interpolate's (antialias=True), as two matrix products, so that ONNX Runtime computes
    the same numbers at any H and W."""
    height, width = x.shape[2], x.shape[3]
    if not torch.compiler.is_exporting() and height == width == size:
        return x
    return _weights(height, size, x) @ x @ _weights(width, size, x).transpose(0, 1)


def _weights(length: int, size: int, like: Tensor) -> Tensor:
    """[size, length]: of each new pixel, the share of each old one. A triangle around its centre."""
    new = torch.arange(size, dtype=torch.float32, device=like.device)
    old = torch.arange(length, dtype=torch.float32, device=like.device)
    shrinks: Any = torch.sym_max(length / size, 1.0)  # a symbol while exporting
    centre = (new + 0.5) * (length / size) - 0.5
    share = torch.relu(1.0 - torch.abs(old - centre.unsqueeze(1)) / shrinks)
    return share / share.sum(1, keepdim=True)
