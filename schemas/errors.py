"""Every error that afresh raises on purpose. Texts say what was found, what is needed, where to change it."""


class AfreshError(Exception):
    """The root: whatever is caught as this was expected, and its text is fit for the operator."""

    exit_code = 1


class SettingsError(AfreshError):
    """The settings file cannot be used; names the key."""

    exit_code = 2


class LeaseHeld(AfreshError):
    """Another daemon holds the service."""

    exit_code = 3


class LeaseLost(AfreshError):
    """A successor has taken the lease while we were away: stop at once, write nothing more."""

    exit_code = 4


class Fenced(AfreshError):
    """Redis holds a newer epoch than ours for this group: we are the zombie."""

    exit_code = 4


class SourceError(AfreshError):
    """The stream cannot go on without an operator: partitions changed, positions gone, topic missing."""

    exit_code = 5


class SourceDown(AfreshError):
    """Kafka does not answer; try again later."""

    exit_code = 6


class SinkDown(AfreshError):
    """Redis does not answer; hold the batch, pause the source, try again later."""

    exit_code = 6


class Invalid(AfreshError):
    """One record cannot be used: it goes to the dead-letter topic with this text as its reason."""


class SnapshotError(AfreshError):
    """A snapshot is missing, truncated, altered or of another format."""

    exit_code = 7


class ReleaseError(AfreshError):
    """A release failed a check (hash, parity, gate) and is not served."""

    exit_code = 8
