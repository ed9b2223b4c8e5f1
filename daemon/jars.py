"""Apache Kafka's jars for the local broker of the demo and the tests: pinned, fetched, verified.

`deploy/kafka-jars.sha256` names every jar and its SHA-256; nothing else is ever put on the
class path. `python -m daemon.jars` fetches what is missing, `python -m daemon.jars lock` writes
the list anew for the versions of `ROOTS`."""

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jgo
import rich
from jgo.config import GlobalSettings
from jgo.constants import MAVEN_CENTRAL_URL
from jgo.maven import MavenContext
from rich.progress import track

from schemas.errors import AfreshError

ROOTS = "org.apache.kafka:kafka_2.13:4.1.1+org.slf4j:slf4j-simple:1.7.36"
CHECKOUT = Path(__file__).resolve().parent.parent
LIST = CHECKOUT / "deploy" / "kafka-jars.sha256"


class JarError(AfreshError):
    """A jar is missing, or is not the one that the list names."""


def cache_dir() -> Path:
    """build/ in a checkout, else the user's cache."""
    if (CHECKOUT / "pyproject.toml").exists():
        return CHECKOUT / "build" / "kafka"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "afresh" / "kafka"


def read_list(path: Path = LIST) -> dict[str, str]:
    """group:artifact:version -> SHA-256, from lines of `<SHA-256>  <group:artifact:version>`."""
    if not path.exists():
        raise JarError(f"{path} is missing; run from a checkout of afresh.")
    lines = (line.split() for line in path.read_text().splitlines() if line.strip())
    return {coordinate: digest for digest, coordinate in lines}


def jar_name(coordinate: str) -> str:
    _, artifact, version = coordinate.split(":")
    return f"{artifact}-{version}.jar"


def cache_folder(cache: Path, listed: Path) -> Path:
    """Where the jars of a list lie: another list, another folder."""
    return cache / hashlib.sha256(listed.read_bytes()).hexdigest()[:12]


def verify(folder: Path, wanted: Mapping[str, str]) -> list[Path]:
    """The jars of the list in `folder`, in a stable order; JarError unless each is as listed."""
    jars = [folder / jar_name(coordinate) for coordinate in wanted]
    for jar, digest in zip(jars, wanted.values(), strict=True):
        if not jar.exists():
            raise JarError(f"{jar} is missing; `make servers` fetches it.")
        found = hashlib.sha256(jar.read_bytes()).hexdigest()
        if found != digest:
            raise JarError(
                f"{jar} has SHA-256 {found}, but {digest} is listed in {LIST.name}. It is not "
                f"used. Remove {folder} and run `make servers`; if this happens again, the "
                "repository or the way to it has changed the file."
            )
    return jars


def kafka_jars(cache: Path | None = None, listed: Path = LIST) -> list[Path]:
    """Every jar of the list, verified; fetched first where they are not there yet.

    They are fetched into a folder of their own, which gets its name when all are verified, so
    that two processes may do this at once and a half-done fetch is never used."""
    wanted = read_list(listed)
    base = cache or cache_dir()
    folder = cache_folder(base, listed)
    if not folder.exists():
        base.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix="part-", dir=base))
        try:
            _fetch(part, list(wanted))
            verify(part, wanted)
            try:
                part.rename(folder)
            except OSError:  # another process was first; its jars are verified below
                if not folder.exists():
                    raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return verify(folder, wanted)


def _repositories() -> dict[str, str]:
    """Maven Central, unless the user has named mirrors in jgo's own settings."""
    return GlobalSettings.load().repositories or {"central": MAVEN_CENTRAL_URL}


def _fetch(folder: Path, coordinates: list[str]) -> None:
    maven = MavenContext(repo_cache=folder / "maven", remote_repos=_repositories(), timeout=30)

    def fetch(coordinate: str) -> None:
        group, artifact, version = coordinate.split(":")
        jar = maven.project(group, artifact).at_version(version).artifact()
        for attempt in range(3):
            try:
                jar.resolve().rename(folder / jar_name(coordinate))
                return
            except Exception as error:
                if jar.cached_path is not None:
                    jar.cached_path.unlink(missing_ok=True)
                if attempt == 2:
                    raise JarError(
                        f"{coordinate} could not be fetched: {error}. Kafka's jars come from "
                        "Maven Central; behind a mirror, name it under [repositories] in "
                        "~/.config/jgo.conf. Or set AFRESH_KAFKA to a broker of yours."
                    ) from error

    with ThreadPoolExecutor(8) as pool:
        fetched = pool.map(fetch, coordinates)
        for _ in track(fetched, "Fetching Kafka's jars (43 MB)", total=len(coordinates)):
            pass
    shutil.rmtree(folder / "maven")


def lock(listed: Path = LIST) -> None:
    """Resolve ROOTS and write the list. Read its diff before you commit it."""
    lines = []
    for jar in jgo.resolve(ROOTS, repositories=_repositories()):
        digest = hashlib.sha256(jar.resolve().read_bytes()).hexdigest()
        lines.append(f"{digest}  {jar.groupId}:{jar.artifactId}:{jar.version}")
    listed.write_text("\n".join(sorted(lines, key=lambda line: line.split()[1])) + "\n")


def main(arguments: list[str]) -> int:
    try:
        if arguments == ["lock"]:
            lock()
        jars = kafka_jars()
    except JarError as error:
        rich.print(f"[red]{error}")
        return error.exit_code
    rich.print(f"Kafka's jars: {len(jars)} verified.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
