"""pytorch-lifestream in an environment of its own under build/, and what is asked of it, remembered."""

import json
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

BUILD = Path(__file__).parents[1] / "build"
HOME = BUILD / "ptls-venv"
SCRIPT = Path(__file__).with_name("lifestream.py")
WANTED = "pytorch-lifestream==0.7.*"
Columns = dict[str, npt.NDArray[Any]]


class Missing(Exception):
    """The reference cannot be had here; the text says why."""


def python() -> Path:
    """The interpreter of the reference's environment, made where there is none yet."""
    found = HOME / "bin" / "python"
    ready = HOME / ".ready"
    if ready.exists():
        return found
    uv = Path(sys.executable).with_name("uv")
    for command in (
        [uv, "venv", "--quiet", "--clear", "--python", sys.executable, HOME],
        [uv, "pip", "install", "--quiet", "--python", found, WANTED],
    ):
        try:
            done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
        except OSError as error:
            raise Missing(f"{command[0]} does not run: {error}") from None
        if done.returncode:
            raise Missing(f"{WANTED} cannot be installed: {done.stderr.strip()[-300:]}")
    ready.touch()
    return found


def ask(what: str, columns: Columns, suffix: str) -> Path:
    """Runs `lifestream.py what` on these rows, on one thread; the file that it wrote.

    Answers are kept in build/ by a hash of the rows and of the script."""
    digest = sha256(SCRIPT.read_bytes())
    for name in sorted(columns):
        digest.update(name.encode() + np.ascontiguousarray(columns[name]).tobytes())
    answer = BUILD / f"ptls-{what}-{digest.hexdigest()[:12]}{suffix}"
    if answer.exists():
        return answer
    interpreter = python()
    BUILD.mkdir(exist_ok=True)
    rows = answer.with_suffix(".rows.npz")
    part = answer.with_suffix(f".part{suffix}")
    np.savez(rows, **columns)  # type: ignore[arg-type]
    one = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}
    command = [str(interpreter), str(SCRIPT), what, str(rows), str(part)]
    done = subprocess.run(
        command, env={**os.environ, **one}, capture_output=True, text=True, check=False
    )
    rows.unlink()
    if done.returncode:
        raise Missing(f"its run failed: {done.stderr.strip()[-500:]}")
    part.replace(answer)
    return answer


def entities_per_s(columns: Columns) -> float:
    """Of its training loop; measured anew each time."""
    answer = ask("speed", columns, ".json")
    value = float(json.loads(answer.read_text())["entities_per_s"])
    answer.unlink()
    return value
