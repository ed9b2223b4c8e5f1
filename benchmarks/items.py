"""What every measuring target writes: a list of {name, value, unit, bar, ok}; `bar` null where there is none."""

from typing import TypedDict


class Item(TypedDict):
    name: str
    value: float
    unit: str
    bar: float | None
    ok: bool | None


def at_least(name: str, value: float, unit: str, bar: float) -> Item:
    return Item(name=name, value=value, unit=unit, bar=bar, ok=value >= bar)


def at_most(name: str, value: float, unit: str, bar: float) -> Item:
    return Item(name=name, value=value, unit=unit, bar=bar, ok=value <= bar)


def shown(name: str, value: float, unit: str) -> Item:
    return Item(name=name, value=value, unit=unit, bar=None, ok=None)
