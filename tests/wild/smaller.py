"""Removes lines of a program as long as it fails in the same way."""

from __future__ import annotations

from dataclasses import replace

from wild.programs import Program, surroundings
from wild.trials import tried_on
from wild.verdicts import Verdict, general

ROUNDS = 4
"""Passes over all lines; a line may only go after a later one went."""


def smaller(program: Program, verdict: Verdict) -> Program:
    """A program of fewer lines with the same verdict, up to names and numbers."""
    wanted = (verdict.verdict, verdict.kind, general(verdict.text)[:60])
    for _ in range(ROUNDS):
        lines = before = program.source.splitlines(keepends=True)
        start = next(n for n, line in enumerate(lines) if line.startswith("from wild"))
        for index in reversed(range(start + 1, len(lines))):
            fewer = replace(program, source="".join(lines[:index] + lines[index + 1 :]))
            if _same(fewer, wanted):
                program, lines = fewer, lines[:index] + lines[index + 1 :]
        if len(lines) == len(before):
            break
    return program


def _same(program: Program, wanted: tuple[str, str, str]) -> bool:
    try:
        with surroundings():
            program.make().eval()(*program.inputs())
    except Exception:  # noqa: BLE001 - no program any more
        return False
    found = tried_on(program)
    return (found.verdict, found.kind, general(found.text)[:60]) == wanted
