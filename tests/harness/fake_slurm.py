"""Stands in for Slurm's programs: scripts that print what a test says, fail or hang.

They are all that PATH has, so that no other Slurm of the machine is asked.
"""

import shlex
from pathlib import Path

import pytest

PROGRAMS = ("sbatch", "srun", "squeue", "sacct", "scontrol", "scancel")


class FakeSlurm:
    """Programs by Slurm's names in a folder, which note how they were called."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bin = folder / "bin"
        self.bin.mkdir()
        self._cases: dict[str, dict[str, str]] = {}
        for program in PROGRAMS:
            self.answer(program, "")
        monkeypatch.setenv("PATH", str(self.bin))

    def answer(self, program: str, text: str, to: str = "") -> None:
        """Print `text` from now on, where the arguments contain the text `to`."""
        self._set(program, to, f"printf '%s' {shlex.quote(text)}")

    def fail(self, program: str, error: str, to: str = "") -> None:
        self._set(program, to, f"printf '%s\\n' {shlex.quote(error)} >&2; exit 1")

    def hang(self, program: str) -> None:
        self._set(program, "", "exec /bin/sleep 60")

    def remove(self, program: str) -> None:
        (self.bin / program).unlink()

    def calls(self, program: str) -> list[str]:
        """The arguments of every call, the oldest first."""
        file = self.bin / f"{program}.calls"
        return file.read_text().splitlines() if file.exists() else []

    def _set(self, program: str, to: str, action: str) -> None:
        cases = self._cases.setdefault(program, {})
        cases[to] = action
        # The longest text first: "" fits every call.
        rows = [f"*{shlex.quote(to)}*) {cases[to]};;" for to in sorted(cases, key=len)[::-1]]
        calls = shlex.quote(str(self.bin / f"{program}.calls"))
        lines = ["#!/bin/sh", f'echo "$*" >> {calls}', 'case "$*" in', *rows, "esac"]
        script = self.bin / program
        script.write_text("\n".join(lines) + "\n")
        script.chmod(0o755)
