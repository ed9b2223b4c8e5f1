"""Which kinds of embeddings are there more or less often than in the reference?

Prototypes of the reference, and the share of what comes that is nearest to each: after ProtoSim, van Noord 2023,
arXiv:2309.02401, its learnt prototypes replaced by spherical k-means. Shapes: N vectors, D dimensions, K prototypes."""

import numpy as np

from learning.clusters import Clusters
from schemas.records import F32, F64, I64

K, PASSES = 16, 10
BATCH = 256


class Concepts:
    """Of a reference of N unit vectors."""

    def __init__(self, reference: F32) -> None:
        self._clusters = Clusters(min(K, len(reference)), reference.shape[1])
        for _ in range(PASSES):
            for at in range(0, len(reference), BATCH):
                self._clusters.move(reference[at : at + BATCH])
        self.then = self.shares(reference)

    @property
    def centres(self) -> F32:
        return self._clusters.centres[0]

    def of(self, z_ND: F32) -> I64:
        """The prototype that each is nearest to."""
        return self._clusters.assign(z_ND)

    def shares(self, z_ND: F32) -> F64:
        """[K]"""
        return np.bincount(self.of(z_ND), minlength=len(self.centres)) / max(len(z_ND), 1)
