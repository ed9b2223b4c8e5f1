"""What people are shown of a bad record holds nothing of the record."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.rejected import SHOWN, discreet


@given(st.text(min_size=3, alphabet=st.characters(exclude_characters="…")))
def test_a_name_that_a_reason_quotes_is_left_out(name: str) -> None:
    told = discreet("misplaced", f"the entity {name!r} belongs to partition 3")
    assert told == "the entity … belongs to partition 3"


@given(st.binary(min_size=1, max_size=40))
def test_bytes_that_a_reason_quotes_are_left_out(data: bytes) -> None:
    assert (
        discreet("image_format", f"9 bytes that begin with {data!r}") == "9 bytes that begin with …"
    )


@pytest.mark.parametrize("error", ["unreachable", "uri_refused"])
def test_a_uri_is_left_out(error: str) -> None:
    assert discreet(error, "s3://bucket/a/b.jpg: not found") == "…: not found"


def test_paths_of_the_settings_are_shown() -> None:
    assert (
        discreet("wrong_type", "'a.b': got str; needed is a number")
        == "'a.b': got str; needed is a number"
    )


def test_a_long_reason_is_cut() -> None:
    told = discreet("not_json", "x" * 1000)
    assert (len(told), told[-1]) == (SHOWN, "…")
