"""Clusters of unit vectors that come in a stream: two levels of spherical k-means, moved a batch at a time.

Source: balanced sampling from hierarchical k-means, Vo et al. 2024, arXiv:2405.15613; each level is k-means by
mini-batches, Sculley 2010, doi:10.1145/1772690.1772862, whose memory here ends at LONGEST, for vectors drift.

Shapes: N vectors of D, K fine clusters, C coarse ones of their centres."""

import numpy as np
import numpy.typing as npt

from schemas.records import F32, I64

LONGEST = 1000.0  # vectors that a centre remembers
FADED = 0.5  # of a cluster's share of all vectors, were they alike: below it a centre is put where vectors are far
SAME = 0.999  # cosine of a vector that a centre is no better for being put at
FADES = 0.999  # a batch, of how many vectors a cluster had


class Clusters:
    def __init__(self, fine: int, dim: int) -> None:
        self.centres = [np.zeros((k, dim), np.float32) for k in (fine, max(2, round(fine**0.5)))]
        self.mass = [
            np.zeros(len(c)) for c in self.centres
        ]  # vectors that came to each; 0: there is none

    def assign(self, z_ND: F32, level: int = 0) -> I64:
        """The nearest centre of each; -1 where there are none yet."""
        there = self.mass[level] > 0
        if not there.any():
            return np.full(len(z_ND), -1)
        like = np.where(there, z_ND @ self.centres[level].T, -np.inf)
        return np.asarray(like.argmax(1))

    def coarse(self) -> I64:
        """[K] the coarse cluster of each fine one; -1 where either is not there."""
        return np.where(self.mass[0] > 0, self.assign(self.centres[0], 1), -1)

    def move(self, z_ND: F32) -> I64:
        """Centres move towards their vectors; returns where each vector was. The coarse ones follow the fine."""
        at = self._moved(z_ND, 0)
        self._moved(self.centres[0][self.mass[0] > 0], 1)
        return at

    def _moved(self, z_ND: F32, level: int) -> I64:
        centres, mass = self.centres[level], self.mass[level]
        mass *= FADES
        self._place(z_ND, level)
        at = self.assign(z_ND, level)
        many = np.bincount(at, minlength=len(centres)).astype(np.float64)
        total = np.zeros_like(centres)
        np.add.at(total, at, z_ND)
        known = np.minimum(mass, LONGEST)
        hit = many > 0
        step = (many[hit] / (known[hit] + many[hit]))[:, None].astype(np.float32)
        mean = total[hit] / many[hit, None].astype(np.float32)
        centres[hit] += step * (mean - centres[hit])
        centres[hit] /= np.linalg.norm(centres[hit], axis=1, keepdims=True).clip(min=1e-6)
        mass += many
        return at

    def _place(self, z_ND: F32, level: int) -> None:
        """Centres that are not there, or that hardly any vector comes to, go where vectors are far from all."""
        centres, mass = self.centres[level], self.mass[level]
        faded = np.flatnonzero(mass <= FADED * mass.mean())
        if not len(z_ND) or not len(faded):
            return
        none = int(np.count_nonzero(mass[faded] == 0))
        faded = faded[np.argsort(mass[faded], kind="stable")][
            : max(none, 1)
        ]  # one of those there are at a time
        near = np.full(len(z_ND), -2.0, np.float32)  # cosine to the nearest centre
        if (mass > 0).any():
            near = (z_ND @ centres[mass > 0].T).max(1)
        for centre in faded:
            far = int(near.argmin())
            if near[far] > SAME:
                return
            centres[centre], mass[centre] = z_ND[far], max(1.0, FADED * mass.mean())
            near = np.maximum(near, z_ND @ z_ND[far])

    def state_dict(self) -> dict[str, npt.NDArray[np.generic]]:
        return {
            f"{name}.{i}": a
            for name in ("centres", "mass")
            for i, a in enumerate(getattr(self, name))
        }

    def load_state_dict(self, state: dict[str, npt.NDArray[np.generic]]) -> bool:
        """False: of other settings, or none; nothing is taken."""
        own = self.state_dict()
        if any(name not in state or state[name].shape != a.shape for name, a in own.items()):
            return False
        for name, a in own.items():
            a[:] = state[name]
        return True
