"""Shares of a process's time."""

from collections.abc import Callable


class Budget:
    """Lets a side task have at most `share` of the time."""

    def __init__(self, share: float, clock: Callable[[], float]) -> None:
        self._share, self._clock, self._spent, self._since = share, clock, 0.0, clock()

    def allows(self) -> bool:
        elapsed = self._clock() - self._since
        if elapsed > 10.0:  # old thrift is not saved up
            self._since, self._spent, elapsed = self._clock(), 0.0, 0.0
        return self._spent <= self._share * elapsed

    def spend(self, seconds: float) -> None:
        self._spent += seconds
