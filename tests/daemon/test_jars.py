"""Kafka's jars: only what the committed list names is ever used."""

import shutil
from pathlib import Path

import pytest

from daemon import jars


@pytest.fixture
def cached(tmp_path: Path) -> tuple[Path, Path]:
    """A cache of one listed jar, and its list."""
    whole = jars.kafka_jars()
    coordinate = next(iter(jars.read_list()))
    digest = jars.read_list()[coordinate]
    listed = tmp_path / "jars.sha256"
    listed.write_text(f"{digest}  {coordinate}\n")
    folder = jars.cache_folder(tmp_path, listed)
    folder.mkdir()
    shutil.copy(whole[0], folder)
    return tmp_path, listed


def test_every_jar_is_listed_with_its_hash() -> None:
    listed = jars.read_list()
    assert "org.apache.kafka:kafka_2.13:4.1.1" in listed
    assert all(len(digest) == 64 for digest in listed.values())
    assert len({jars.jar_name(coordinate) for coordinate in listed}) == len(listed)


def test_verified_jars_are_used(cached: tuple[Path, Path]) -> None:
    cache, listed = cached
    (jar,) = jars.kafka_jars(cache, listed)
    assert jar.exists()


def test_a_jar_with_another_hash_is_refused(cached: tuple[Path, Path]) -> None:
    cache, listed = cached
    (jar,) = jars.kafka_jars(cache, listed)
    with jar.open("ab") as file:
        file.write(b"!")
    with pytest.raises(jars.JarError, match="not used"):
        jars.kafka_jars(cache, listed)


def test_a_missing_jar_is_named(cached: tuple[Path, Path]) -> None:
    cache, listed = cached
    (jar,) = jars.kafka_jars(cache, listed)
    jar.unlink()
    with pytest.raises(jars.JarError, match=jar.name):
        jars.kafka_jars(cache, listed)
