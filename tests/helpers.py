"""What several tests need."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(condition: Callable[[], T], timeout_s: float = 10.0, what: str = "") -> T:
    """The first truthy value of `condition`; AssertionError when none came in time."""
    end = time.monotonic() + timeout_s
    pause = threading.Event()
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            name = what or getattr(condition, "__name__", "the condition")
            raise AssertionError(f"{name}: still {value!r} after {timeout_s} s")
        pause.wait(0.01)


def client_threads() -> list[str]:
    """Threads of Kafka's clients and of those who watch over them."""
    names = ("kafka-", "dead-letters")
    return [t.name for t in threading.enumerate() if t.name.startswith(names)]
