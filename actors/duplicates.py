"""Images that are all but the same as one seen lately, by their vectors.

A cosine alone says little: where all images of a stream are alike, all cosines are high. So a pair's is lowered
by that of the image with those of the seen ones that come next: score normalisation as in SSCD, Pizzi et al. 2022,
arXiv:2202.10261, section 3.3, with the images seen lately as its background."""

import numpy as np

from schemas.records import F32, Bool

SEEN = 4096  # images
NEXT = 10  # of the background; the image's own copy is not among them
LEAST = 64  # images seen before any is judged by it
SAME = 1 - 1e-6  # a cosine from which on it is the same frame again, whatever is usual


class Duplicates:
    """threshold: the normalised score from which on two images are one. D dimensions of unit vectors."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._seen = np.zeros((0, 0), np.float32)  # [SEEN, D]
        self._count = 0

    def judge(self, vectors: F32, before: F32) -> tuple[Bool, Bool]:
        """Of N new images: which are copies of one seen lately, and which of their entity's image before.

        vectors, before: [N, D]; `before` is zero where there is none. Those that are no copies count as seen."""
        nearest, usual = self._near(vectors)
        copies = self._alike(nearest, usual)
        same = before.any(1) & self._alike((vectors * before).sum(1), usual)
        chosen = np.flatnonzero(~copies)  # copies of each other, in one batch, too
        like = vectors[chosen] @ vectors[chosen].T
        earlier = np.tri(len(chosen), k=-1, dtype=np.bool_)
        among = np.where(earlier, like, np.float32(-1.0)).max(1, initial=-1.0)
        copies[chosen[self._alike(among, usual[chosen])]] = True
        self._add(vectors[~copies])
        return copies, same

    def _alike(self, cosine: F32, usual: F32) -> Bool:
        return (cosine - usual > self._threshold) | (cosine > SAME)

    def _near(self, vectors: F32) -> tuple[F32, F32]:
        """Cosines [N] with the nearest one seen, and the mean of those that come next; infinite while too few were."""
        n, seen = len(vectors), self._seen[: min(self._count, SEEN)]
        near = vectors @ seen.T if len(seen) else np.full((n, 1), -1.0, np.float32)
        if len(seen) < LEAST:
            return near.max(1), np.full(n, np.inf, np.float32)
        near = np.partition(near, -(1 + NEXT), axis=1)[:, -(1 + NEXT) :]
        nearest = near.max(1)
        return nearest, (near.sum(1) - nearest) / NEXT

    def _add(self, vectors: F32) -> None:
        if not self._seen.size:
            self._seen = np.zeros((SEEN, vectors.shape[1]), np.float32)
        vectors = vectors[-SEEN:]
        self._seen[(self._count + np.arange(len(vectors))) % SEEN] = vectors
        self._count += len(vectors)
