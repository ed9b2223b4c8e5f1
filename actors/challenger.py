"""A second learner, which begins anew where the first can learn no more, and takes its place if its release passes.

A network that has learnt for long may no longer learn what is new: units die, weights grow (Dohare et al. 2024,
doi:10.1038/s41586-024-07711-7). One from new weights can. It learns from the same replay beside the first. When it
has made its updates the next snapshot's encoder is its own; the publisher asks of it that entities find themselves no
worse than with the served release, and what the publisher says is read from its folders."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import structlog

from actors.served import REFUSED, read_manifest
from learning.config import ChallengerConfig
from learning.learner import Learner
from schemas.errors import ReleaseError

log = structlog.get_logger()
LOOK_S = 2.0  # between two looks at what the publisher says
Outcome = Literal["won", "lost"]


class Challenge:
    """make: a learner from new weights, of a seed. releases: the publisher's folder."""

    def __init__(
        self, config: ChallengerConfig, releases: Path, make: Callable[[int], Learner]
    ) -> None:
        self._config, self._releases, self._make = config, releases, make
        self._begun = 0
        self._offered = ""  # the snapshot whose encoder is the challenger's
        self._look_at = 0.0
        self.learner: Learner | None = None

    def consider(self, champion: Learner, dormant: dict[str, float]) -> None:
        """Begins one where units of some kind of layer are dormant."""
        share = max(dormant.values(), default=0.0)
        if self.learner is not None or not share >= self._config.dormant:
            return
        self._begun += 1
        self.learner = self._make(champion.config.seed + 7919 * self._begun)
        self.learner.begin_beside(champion)
        self._offered = ""
        log.warning("challenger_begins", dormant=round(share, 3), updates=self._config.updates)

    def learn(self) -> None:
        if self.learner is not None and not self.ready:
            self.learner.learn()

    @property
    def ready(self) -> bool:
        """Whether the next snapshot's encoder is to be its own."""
        return self.learner is not None and self.learner.updates >= self._config.updates

    def offered(self, snapshot: str) -> None:
        self._offered = snapshot

    def outcome(self, now: float) -> Outcome | None:
        """What the publisher has said of it. None: nothing yet, for no release is made while another is filled, or
        after a rollback; then the next snapshot offers it again."""
        if not self._offered or now < self._look_at:
            return None
        self._look_at = now + LOOK_S
        where: dict[Outcome, Path] = {"won": self._releases, "lost": self._releases / REFUSED}
        for outcome, folder in where.items():
            if self._offered in map(_snapshot, folder.glob("[0-9]*")):
                log.warning("challenger_ends", outcome=outcome, snapshot=self._offered)
                return outcome
        return None

    def end(self) -> None:
        self.learner, self._offered = None, ""


def _snapshot(release: Path) -> str:
    """From which a release was made; empty where that cannot be read."""
    try:
        return read_manifest(release).snapshot
    except ReleaseError:
        return ""
