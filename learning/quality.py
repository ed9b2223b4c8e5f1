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


def lidar(z_BVD: Tensor, delta: float = 1e-4) -> Tensor:
    """Effective rank of what tells things apart, in units of how much their views differ: 1 to D.

    z_BVD: V views each of B things. Source: LiDAR, Thilak et al. 2024, arXiv:2312.04000, equations 1 to 3, with its
    delta on the within-class covariance and without its epsilon."""
    z = z_BVD.double()
    b, v, d = z.shape
    mean_BD = z.mean(1)
    within = (z - mean_BD[:, None]).flatten(0, 1)
    between = mean_BD - mean_BD.mean(0)
    value, vector = torch.linalg.eigh(within.T @ within / (b * v) + delta * torch.eye(d).to(z))
    whitened = between @ vector / value.sqrt()
    found = torch.linalg.eigvalsh(whitened.T @ whitened / b).clamp(min=0.0)
    rank: Tensor = torch.special.entr(F.normalize(found, p=1, dim=0)).sum().exp()
    return rank


def coding_rate(z_BD: Tensor, squared_error: float = 0.5) -> Tensor:
    """Bits, in base e, that tell one vector from all, up to so much squared error; 0 is collapse.

    Source: maximal coding rate reduction, Yu et al. 2020, arXiv:2006.08558, equation 3."""
    z = z_BD.double()
    b, d = z.shape
    rate: Tensor = torch.logdet(torch.eye(d).to(z) + d / (b * squared_error) * (z.T @ z)) / 2.0
    return rate


MODE = 0.1  # of the variance that each direction would have, were unit vectors even


def modes(z_BD: Tensor) -> int:
    """How many eigenvalues of the covariance are above MODE / D; they are learnt one after the other.

    Source: Simon et al. 2023, arXiv:2303.15438, the floor ours."""
    z = z_BD.double()
    return int((torch.linalg.eigvalsh(torch.cov(z.T)) > MODE / z.shape[1]).sum())


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
