"""What the daemon tells the learner to do until it says otherwise: `daemon/reactions.py` decides."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Orders:
    """paused: nothing is learnt, nor any snapshot made for a release; what comes is looked at only for drift.
    pace: times `learner.updates_per_record`. release_s: least time between releases, where it is shorter than
    `release.every_s`."""

    paused: bool = False
    pace: float = 1.0
    release_s: float = float("inf")
