"""Which entities are never trained on. NumPy only: shards and publisher ask it too."""

import numpy as np

from schemas.records import I64, Bool

MOST = 0.1  # of the entities, when there are few
_MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def mixed(entity: I64) -> I64:
    """A second hash of hashes (splitmix64), so that shares are exact whatever the first was."""
    x = entity.view(np.uint64).copy()
    for factor, shift in zip(_MIX, (30, 27), strict=True):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return (x ^ (x >> np.uint64(31))).view(np.int64)


def held_out(entity: I64, share: float) -> Bool:
    """True for `share` of all entities; those of a smaller share are among those of a larger."""
    return np.asarray((mixed(entity).view(np.uint64) >> np.uint64(11)) < share * 2.0**53)


def lowered(share: float, held: int, least: float, wanted: int) -> float:
    """The share from now on, when `held` entities were held out at `share`.

    It starts at MOST and only falls, so that no entity that was trained on is held out later."""
    if least == 0.0:
        return 0.0
    return share if held <= wanted else max(least, share * wanted / held)
