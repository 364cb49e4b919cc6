"""Random wild programs: growth leaves their outputs alone, or gives a reason to refuse."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import MANY
from torch import nn
from wild import __main__ as command
from wild import trials
from wild.drafts import FAMILIES, Argument
from wild.programs import Program, draw
from wild.smaller import smaller
from wild.summary import Summary
from wild.trials import Trial, tried, tried_on
from wild.verdicts import Verdict, general

import splitgrow
from splitgrow.analysis.ops import registry

ROOT = Path(__file__).parent.parent
PROGRAMS, PARTS, TRIALS = int(80 * MANY), 4, 5

PLAIN = """
import torch
from torch import nn
from wild.extras import opinfo

class Program(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x):
        h = self.a(x)
        return self.b(h.relu())
"""


def program(source: str = PLAIN, seed: int = 3) -> Program:
    return Program(seed, source, (Argument("x", (5,)),))


@pytest.mark.parametrize("part", range(PARTS))
def test_hundreds_of_wild_programs_keep_their_outputs_or_say_why_not(part: int) -> None:
    summary = Summary()
    for seed in range(part, PROGRAMS, PARTS):
        summary.add(tried(seed))
    assert not summary.findings, summary.text()
    assert summary.verdicts["exact"] > 0.3 * PROGRAMS / PARTS
    assert summary.verdicts["fixed"] > 0


def test_a_plain_program_is_exact() -> None:
    for seed in range(TRIALS):
        assert tried_on(program(seed=seed)).verdict == "exact"


# -- what is planted is found ------------------------------------------------------------------


def _wrong(monkeypatch: pytest.MonkeyPatch, source: str = PLAIN) -> set[str]:
    """The kinds of wrong that a few trials of a program find."""
    found = [tried_on(program(source, seed)) for seed in range(TRIALS)]
    return {verdict.kind for verdict in found if verdict.verdict == "WRONG"}


def test_outputs_that_move_are_found_where_values_are_not_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _believe_everything(monkeypatch)
    source = PLAIN.replace("h.relu()", "h / len(list(self.parameters()))")
    assert "outputs" in _wrong(monkeypatch, source)


def _believe_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    def growable(self: Trial, model: nn.Module) -> Any:
        return splitgrow.growable(model, self.program.inputs(), check=False)

    def expand(self: Trial, model: Any, layer: Any) -> Any:
        return splitgrow.handle(model).expand_layer("a", 8, freeze=self.freeze, check=False)

    monkeypatch.setattr(Trial, "growable", growable)
    monkeypatch.setattr(Trial, "expand", expand)


def test_a_wrong_rule_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.OPS, torch.fft.fftshift, registry.Entry(lambda op: op.x))
    _believe_everything(monkeypatch)
    assert "outputs" in _wrong(monkeypatch, PLAIN.replace("h.relu()", "torch.fft.fftshift(h)"))


def _fails(error: Exception) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        raise error

    return call


INTERNAL = (KeyError("a"), AssertionError(), IndexError("0"), StopIteration(), RuntimeError("r"))


@pytest.mark.parametrize("error", [*INTERNAL, ValueError("raised by the test, not by the library")],
                         ids=lambda error: type(error).__name__)  # fmt: skip
@pytest.mark.parametrize("where", ["growable", "expand", "merge"])
def test_an_internal_error_is_found(
    error: Exception, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(splitgrow if where == "merge" else Trial, where, _fails(error))
    assert _wrong(monkeypatch) == {"internal"}


def test_a_refusal_is_none_if_it_leaves_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    def expand(self: Trial, model: Any, layer: Any) -> Any:
        with torch.no_grad():
            next(model.parameters()).add_(1)
        raise splitgrow.SplitGrowError("it cannot be done, for a reason that is given")

    monkeypatch.setattr(Trial, "expand", expand)
    assert _wrong(monkeypatch) == {"disturbed"}


@torch.no_grad()
def _moved(model: nn.Module, index: int) -> nn.Module:
    list(model.parameters())[index].add_(0.1)
    return model


def test_a_merge_that_computes_something_else_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    merge = splitgrow.merge
    monkeypatch.setattr(splitgrow, "merge", lambda model: _moved(merge(model), -1))
    assert _wrong(monkeypatch) == {"merge"}


def test_a_past_that_moves_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    stir = trials.stir_
    monkeypatch.setattr(trials, "stir_", lambda model: (stir(model), _moved(model, 0)))
    assert _wrong(monkeypatch) == {"at(0)"}


def test_a_helper_that_is_not_zero_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    give = trials.give_values_
    monkeypatch.setattr(trials, "give_values_", lambda model: (give(model), trials.stir_(model)))
    assert _wrong(monkeypatch) == {"outputs"}


# -- the generator -----------------------------------------------------------------------------


def test_every_family_is_drawn() -> None:
    drawn = Counter(piece.split(":")[0] for seed in range(150) for piece in draw(seed).pieces)
    assert not set(FAMILIES) - set(drawn) - {"torch"}


DRAWS = """
import hashlib
from wild.programs import draw
print(hashlib.sha256("".join(draw(seed).source for seed in range(25)).encode()).hexdigest())
"""


def test_a_seed_gives_the_same_program_in_every_process() -> None:
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": f"tests{os.pathsep}."}
    command = [sys.executable, "-c", DRAWS]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True)
    here = "".join(draw(seed).source for seed in range(25))
    assert done.stdout.decode().strip() == hashlib.sha256(here.encode()).hexdigest()


def test_a_seed_gives_the_same_verdict_again() -> None:
    def without_time(verdict: Verdict) -> tuple[object, ...]:
        return verdict.seed, verdict.verdict, verdict.kind, verdict.text, verdict.layer

    assert [without_time(tried(s)) for s in range(8)] == [without_time(tried(s)) for s in range(8)]


def test_what_is_wrong_with_a_program_is_wrong_with_its_smallest_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(splitgrow, "merge", _fails(KeyError("a")))
    more = PLAIN.replace("h = self.a(x)", "h = self.a(x)\n        h = h * 2\n        h = h + 1")
    found = tried_on(program(more))
    small = smaller(program(more), found)
    assert "h * 2" not in small.source
    assert tried_on(small).kind == found.kind


# -- the command -------------------------------------------------------------------------------


def test_the_command_tells_and_writes_what_came_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(splitgrow, "merge", _fails(KeyError("a")))
    path = tmp_path / "summary.json"
    monkeypatch.setattr(sys, "argv", ["wild", "--programs", "6", "--json", str(path)])
    assert command.main() == 1
    data, told = json.loads(path.read_text()), capsys.readouterr()
    assert data["programs"] == 6
    assert data["internal errors"] == len(data["findings"]) > 0
    assert f"--program {data['findings'][0]['seed']}" in told.err
    assert "6 programs" in told.out


def test_an_interrupted_command_tells_how_far_it_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def verdicts(seeds: range, jobs: int) -> Any:
        yield from (Verdict(seed, "exact") for seed in seeds[:3])
        raise KeyboardInterrupt

    path = tmp_path / "summary.json"
    monkeypatch.setattr(command, "verdicts", verdicts)
    monkeypatch.setattr(sys, "argv", ["wild", "--programs", "6", "--json", str(path)])
    assert command.main() == 130
    assert json.loads(path.read_text())["verdicts"] == {"exact": 3}
    assert "3 programs" in capsys.readouterr().out


def test_reasons_are_counted_without_what_is_particular_to_their_program() -> None:
    one = "`m12`: forward uses its `weight` directly, at program_7.py:31 (3, 4)"
    other = "`m3`: forward uses its `weight` directly, at program_99.py:8 (5, 6)"
    assert general(one) == general(other) != general(copy.copy(one).replace("weight", "bias"))
