"""A release's folder, written as the publisher writes it, of graphs that a test has made."""

from collections.abc import Mapping
from pathlib import Path

import msgspec

from actors.folders import write_folder
from actors.graphs import described, files, of_stream
from actors.served import set_current
from schemas.published import Manifest
from schemas.stream import StreamConfig


def write_release(
    releases: Path,
    number: int,
    graphs: Mapping[str, bytes],
    stream: StreamConfig,
    generation: int,
    *,
    dim: int,
    window: int,
    state: int = 0,
) -> None:
    """Writes it and names it as current."""
    manifest = Manifest(
        stream="test", release=number, generation=generation, created_us=number, dim=dim, window=window,
        state=state, **of_stream(stream), **described(graphs),
    )  # fmt: skip
    write_folder(releases, str(number), files(graphs), lambda: msgspec.to_builtins(manifest))
    set_current(releases, number)
