"""Keeps the vectors of one generation in one space, and gives those to compare with."""

import numpy as np
import torch
from torch import Tensor

from learning.config import EncoderConfig, LearnerConfig
from learning.encoders.base import Encoder
from learning.field_learner import FieldLearner
from learning.kinds.events import subset
from learning.learner import Learner
from learning.student import embed
from schemas.records import F32, Windows
from schemas.stream import Shape

RECEIVED = 256  # windows at a time


def procrustes(new_BD: Tensor, old_BD: Tensor) -> Tensor:
    """The rotation or reflection R_DD that brings new_BD @ R closest to old_BD.

    Fit it on 10·D entities at least. Source: Schönemann 1966, doi:10.1007/BF02289451."""
    u, _, vh = torch.linalg.svd(new_BD.double().T @ old_BD.double())
    r_DD: Tensor = u @ vh
    return r_DD


@torch.no_grad()
def rotate(encoder: Encoder, r_DD: Tensor) -> None:
    """Folds the rotation into the last linear layer: its vectors become z @ R."""
    for p in (encoder.out.weight, encoder.out.bias):
        p.copy_((r_DD.T.to(p.device) @ p.double()).to(p.dtype))


def mean_cosine(a_BD: Tensor, b_BD: Tensor) -> float:
    """Of unit vectors, row by row."""
    return float((a_BD * b_BD).sum(1).mean())


def neighbour_overlap(a_BD: Tensor, b_BD: Tensor, k: int = 10) -> float:
    """Mean share of common nearest neighbours in two spaces, by cosine; 1 is agreement."""
    k = min(k, len(a_BD) - 1)
    if k < 1:
        return 1.0
    near = []
    for z in (a_BD, b_BD):
        cosine = z @ z.T
        cosine.fill_diagonal_(-torch.inf)
        near.append(cosine.topk(k, dim=1).indices)
    same = near[0][:, :, None] == near[1][:, None, :]
    return float(same.any(2).float().mean())


def untrained_vectors(config: EncoderConfig, shape: Shape, windows: Windows, seed: int) -> F32:
    """Vectors [B, D] of an encoder that saw these windows' statistics but made no update.

    What learning is worth is measured against it: normaliser, clip bounds and admitted
    categories are a trained encoder's, the weights are as they were drawn."""
    make: type[Learner] = FieldLearner
    if shape.side:
        from learning.image_learner import ImageLearner  # timm is slow to load

        make = ImageLearner
    learner = make(LearnerConfig(seed=seed, held_out_share=0.0), config, shape)
    for start in range(0, len(windows), RECEIVED):
        learner.receive(subset(windows, np.arange(start, min(start + RECEIVED, len(windows)))))
    learner.prepare()
    return embed(learner.ema, windows).numpy()
