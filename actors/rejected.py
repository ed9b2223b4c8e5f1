"""Why a record cannot be used: the closed set of classes, and the error that carries one."""

import re
from typing import Literal

from schemas.errors import Invalid

ErrorClass = Literal[
    "not_json", "not_msgpack", "not_avro", "not_arrow", "wrong_type", "missing_entity",
    "bad_entity", "missing_time", "bad_time", "infinite", "too_large", "too_deep",
    "invalid_utf8", "unknown_schema", "wrong_columns", "misplaced",
    "crashes_decoder", "bad_op", "bad_mirror",
    "bad_image", "image_format", "image_too_large", "uri_refused", "unreachable",
]  # fmt: skip
"""A label of the dead-letter metric."""


class Rejected(Invalid):
    """One record cannot be used; `error` is its class."""

    def __init__(self, error: ErrorClass, reason: str) -> None:
        super().__init__(reason)
        self.error: ErrorClass = error


PATHS = frozenset(
    {"wrong_type", "wrong_columns", "infinite", "bad_time", "missing_entity", "missing_time"}
)
"""Classes whose reasons quote the settings, not the record."""
_QUOTED = re.compile(r"""b?'(?:\\.|[^'\\])*'|b?"(?:\\.|[^"\\])*"|\w+://[^\s]*(?<!:)""")
SHOWN = 200


def discreet(error: str, reason: str) -> str:
    """The reason without anything of the record, for pages and logs."""
    told = reason if error in PATHS else _QUOTED.sub("…", reason)
    return told if len(told) <= SHOWN else told[: SHOWN - 1] + "…"
