"""What an encoder's vectors look like, without labels. Both rank and uniformity are shown:
uniformity alone misses dimensional collapse."""

import torch
import torch.nn.functional as F
from torch import Tensor


def effective_rank(z_BD: Tensor) -> Tensor:
    """Dimensions in real use: near 1 means collapse.

    z_BD: B embeddings of size D. Returns a scalar, 1 to min(B, D).
    Source: RankMe, arXiv:2210.02885, without its epsilon; singular values as roots of the Gram
    matrix's eigenvalues, in float64."""
    z = z_BD.double()
    gram = z.T @ z if z.shape[0] >= z.shape[1] else z @ z.T
    p = F.normalize(torch.linalg.eigvalsh(gram).clamp(min=0.0).sqrt(), p=1, dim=0)
    rank: Tensor = torch.special.entr(p).sum().exp()
    return rank


def uniformity(z_BD: Tensor, t: float = 2.0) -> Tensor:
    """log of the mean exp(-t·d²) over pairs of unit vectors; lower is more even, 0 is collapse.

    Source: Wang and Isola, arXiv:2005.10242."""
    squared = torch.clamp(2.0 - 2.0 * (z_BD @ z_BD.T), min=0.0)
    n = len(z_BD)
    total = torch.exp(-t * squared).sum() - n  # a vector is no pair of itself
    return torch.log(torch.clamp(total, min=1e-30) / max(1, n * (n - 1)))


def alignment(a_BD: Tensor, b_BD: Tensor) -> Tensor:
    """Mean squared distance of two views of the same thing; 0 to 4, lower is more alike.

    Source: Wang and Isola, arXiv:2005.10242."""
    return (a_BD - b_BD).square().sum(1).mean()


def spread(z_BD: Tensor) -> Tensor:
    """How far unit vectors lie apart: the root of their total variance; 0 is collapse, 1 as even as can be."""
    total: Tensor = z_BD.double().var(0, unbiased=False).sum().sqrt()
    return total


def retrieval(a_BD: Tensor, b_BD: Tensor) -> float:
    """Share of rows of a whose nearest row of b, by cosine, is the one of the same index: recall at 1. Ties, as where
    all vectors are the same, are no hits."""
    near_BB = a_BD @ b_BD.T
    own = near_BB.diagonal().clone()
    near_BB.fill_diagonal_(-torch.inf)
    return float((own > near_BB.amax(1)).float().mean()) if len(a_BD) > 1 else 1.0
