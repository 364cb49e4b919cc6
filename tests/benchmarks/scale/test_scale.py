"""The benchmark of sizes: each step runs in a process of its own, and exponents are fitted."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from rich.console import Console

from benchmarks.scale import page, ranks, running
from benchmarks.scale.fits import slope, upper_half
from benchmarks.scale.models import SERIES, Cnn, Series
from benchmarks.scale.steps import STEPS, measured
from benchmarks.scale.traffic import Traffic, Words

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Series:
    series = Series("CNN", "tiny", "layers", ((2, 4), (3, 4), (4, 4), (5, 4)))
    monkeypatch.setitem(SERIES, "cnn-layers", series)
    return series


def test_exponents_come_from_the_upper_half_with_their_error() -> None:
    points = [(float(x), 3.0 * x**1.5) for x in (1, 2, 4, 8, 16)]
    found = slope(points)
    assert found is not None
    assert found.value == pytest.approx(1.5)
    assert found.error == pytest.approx(0, abs=1e-9)
    assert upper_half(points) == points[2:]
    bent = [(x, y if x > 2 else 50.0) for x, y in points]
    fitted = slope(upper_half(bent))
    assert fitted is not None
    assert fitted.value == pytest.approx(1.5)
    noisy = slope([(x, y * math.exp(0.1 * (-1) ** i)) for i, (x, y) in enumerate(points)])
    assert noisy is not None
    assert noisy.error > 0.01
    assert slope(points[:2]) is None
    assert slope([(1.0, 0.0), (2.0, 1.0), (3.0, 1.0)]) is None


def test_all_steps_are_done_with_values_and_without_them_those_that_can_be() -> None:
    torch.manual_seed(0)
    for device in ("cpu", "meta"):
        found = list(measured(Series("CNN", "tiny", "layers", (), device=device), (2, 4)))
        refused = {one.step for one in found if one.error}
        if device == "cpu":
            assert [one.step for one in found] == [*STEPS]
            assert not refused
        else:
            assert {"growable", "stream", "inner", "prune", "merge"} <= {
                one.step for one in found if not one.error
            }
            assert {"insert", "fuse"} >= refused
        assert all(one.seconds > 0 for one in found if not one.error)
        parameters = sum(p.numel() for p in Cnn(2, 4).parameters())
        assert {one.parameters for one in found} == {parameters}


@pytest.mark.slow
@pytest.mark.zoo
def test_stopped_runs_go_on_and_the_page_tells_all(
    small: Series, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[int, int]] = []

    def steps(_: str, size: tuple[int, int]):
        done.append(size)
        for found in measured(small, size):
            yield {**vars(found)}

    monkeypatch.setattr(running, "_steps", steps)
    console = Console(quiet=True)
    for _ in range(2):
        running.measure(tmp_path, ("cnn-layers",), 1, beyond=False, console=console)
    assert done == [*small.sizes]
    records = running.read(tmp_path / running.NAME)
    records[-1]["steps"][-1]["error"] = "NoError: none"
    running_text = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / running.NAME).write_text(running_text)
    monkeypatch.setattr(page, "PAGE", tmp_path / "SCALE.md")
    monkeypatch.setattr(page, "PICTURES", tmp_path)
    monkeypatch.setitem(page.LEAST, "seconds", 0.0)
    text = page.write_page(tmp_path).read_text()
    assert (tmp_path / "scale-cnn-layers.png").exists()
    assert "| `cnn-layers`, over layers |" in text.replace("step | ", "")
    assert "| cnn-layers | fuse | 5 of 4 | NoError: none |" in text
    assert " ± " in text


def test_a_process_that_ends_or_is_late_is_told_with_its_step(monkeypatch, tmp_path) -> None:
    assert running._undone(["forward"], "late")["step"] == "growable"
    assert running._undone([*STEPS], "late")["step"] == "the end"


# -- processes -------------------------------------------------------------------------------------


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_bytes_are_counted_for_each_collective(alone, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.ones(6)
    monkeypatch.setattr(dist, "get_world_size", lambda *_: 3)  # as the count takes it
    with Traffic() as traffic:
        dist.all_reduce(x)
    assert traffic.sent == 2 * 24 * 2 / 3
    with Traffic() as traffic:
        dist.broadcast(x, 0)
    assert traffic.sent == 24 * 2 / 3
    with Traffic() as traffic:
        (x * 2).sum()
    assert traffic.sent == 0
    assert not traffic.calls


def test_words_in_the_store_are_counted() -> None:
    words = Words(dist.HashStore())
    words.set("ab", "cde")
    assert words.sent == 5
    assert words.get("ab") == b"cde"
    assert words.sent == 5


def test_the_table_of_ranks_has_the_slowest_one() -> None:
    def of(seconds: float) -> dict[str, dict[str, float]]:
        one = {"seconds": seconds, "wall": 1.0, "sent": 2.0**20, "words": 2048, "calls": 3}
        return dict.fromkeys(ranks.STEPS, one)

    where = {"date": "today", "commit": "abc"}
    record = {"world": 2, "size": [2, 64], "repeat": 0, "ranks": [of(1.0), of(2.0)]}
    text = page.ranks_section([{**record, "machine": where}])
    assert f"| {ranks.STEPS['inner']} | 2 | 2 | 1.00 | 2.0 | 3 |" in text
