"""References in environments of their own under build/, and what is asked of them, remembered."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

HERE = Path(__file__).parent
BUILD = HERE.parent / "build"
Columns = dict[str, npt.NDArray[Any]]


class Missing(Exception):
    """The reference cannot be had here; the text says why."""


@dataclass(frozen=True)
class Reference:
    name: str  # of its environment and of its answers
    script: Path  # is run as `python script WHAT IN OUT`
    wanted: str  # what is installed: a requirement, or a file of pins with their hashes

    @property
    def _home(self) -> Path:
        return BUILD / f"{self.name}-venv"

    @property
    def _pins(self) -> Path | None:
        return HERE / self.wanted if self.wanted.endswith(".txt") else None

    def _is_ready(self) -> bool:
        ready, pins = self._home / ".ready", self._pins
        if not ready.exists():
            return False
        return pins is None or pins.stat().st_mtime <= ready.stat().st_mtime

    def python(self) -> Path:
        """The interpreter of its environment, made where there is none yet."""
        found = self._home / "bin" / "python"
        if self._is_ready():
            return found
        uv, pins = Path(sys.executable).with_name("uv"), self._pins
        what = [self.wanted] if pins is None else ["--require-hashes", "-r", pins]
        for command in (
            [uv, "venv", "--quiet", "--clear", "--python", sys.executable, self._home],
            [uv, "pip", "install", "--quiet", "--python", found, *what],
        ):
            try:
                done = subprocess.run(
                    [*map(str, command)], capture_output=True, text=True, check=False
                )
            except OSError as error:
                raise Missing(f"{command[0]} does not run: {error}") from None
            if done.returncode:
                raise Missing(f"{self.wanted} cannot be installed: {done.stderr.strip()[-300:]}")
        (self._home / ".ready").touch()
        return found

    def ask(self, what: str, columns: Columns, suffix: str) -> Path:
        """Runs its script on these rows, on one thread; the file that it wrote.

        Answers are kept in build/ by a hash of the rows and of the script."""
        digest = sha256(self.script.read_bytes())
        for name in sorted(columns):
            digest.update(name.encode() + np.ascontiguousarray(columns[name]).tobytes())
        answer = BUILD / f"{self.name}-{what}-{digest.hexdigest()[:12]}{suffix}"
        if answer.exists():
            return answer
        interpreter = self.python()
        BUILD.mkdir(exist_ok=True)
        rows = answer.with_suffix(".rows.npz")
        part = answer.with_suffix(f".part{suffix}")
        np.savez(rows, **columns)  # type: ignore[arg-type]
        one = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}
        command = [str(interpreter), str(self.script), what, str(rows), str(part)]
        done = subprocess.run(
            command, env={**os.environ, **one}, capture_output=True, text=True, check=False
        )
        rows.unlink()
        if done.returncode:
            raise Missing(f"its run failed: {done.stderr.strip()[-500:]}")
        part.replace(answer)
        return answer

    def measure(self, columns: Columns, figure: str) -> float:
        """A figure of its training loop; measured anew each time."""
        answer = self.ask("speed", columns, ".json")
        value = float(json.loads(answer.read_text())[figure])
        answer.unlink()
        return value


LIFESTREAM = Reference("ptls", HERE / "lifestream.py", "pytorch-lifestream==0.7.*")
TGN = Reference("tgn", HERE / "pyg.py", "requirements-tgn.txt")
LIGHTLY = Reference("lightly", HERE / "lightly_vicreg.py", "requirements-lightly.txt")
DRIFT = Reference("drift", HERE / "drift_others.py", "requirements-drift.txt")
