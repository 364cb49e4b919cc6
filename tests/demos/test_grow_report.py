from __future__ import annotations

import io
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from browser import assert_readable, needs_browser
from PIL import Image

from splitgrow.cli.grow_settings import GrowSettings
from splitgrow.cli.ways import KEEPING, LEARNING
from splitgrow.demos import arm_figures, arm_tables, themes
from splitgrow.demos.arm_results import (
    GROWN,
    LARGE,
    SMALL,
    ArmEvaluation,
    ArmGrowth,
    ArmOutcome,
    ArmStep,
    GrowResult,
    Lead,
)
from splitgrow.demos.grow_report import write_grow_report
from splitgrow.grower.planned_growth import PlannedGrowth
from splitgrow.grower.schedule import Schedule
from splitgrow.growth.edits import Edit

_BUDGET = 6_000_000


def _stage(index: int, width: int) -> PlannedGrowth:
    moment = f"{20 * index} % of the arithmetic" if index else "before training"
    widths = {"stem": width, "head": 10}
    request = {"stem": 2} if index else {}
    return PlannedGrowth(index, moment, None, request, {}, widths, 50 * width, 10 * width, None)


def _arm(name: str, accuracy: float, width: int) -> ArmOutcome:
    widths = {"stem": width, "head": 10}
    seconds = {GROWN: 3.5, LARGE: 1.25, SMALL: 4.75}[name]
    return ArmOutcome(
        name, accuracy, 0.1, _BUDGET + width, seconds, 1000 - width, 50 * width, 10 * width, widths
    )


@pytest.fixture
def compared() -> GrowResult:
    """A comparison as it might have been, with numbers that are all different."""
    looks, steps = [], []
    for at, arm in enumerate((GROWN, LARGE, SMALL), 1):
        for look in range(1, 13):
            macs, seconds = look * _BUDGET // 12, look * (0.2 + 0.1 * at)
            loss = 2.3 * math.exp(-look / (2 + at))
            looks.append(ArmEvaluation(arm, 10 * look, macs, seconds, loss, 1 - loss / 2.6))
            steps.append(ArmStep(arm, 10 * look, macs, seconds, look, loss, 1 - loss / 2.5))
    growths = tuple(
        ArmGrowth(
            GROWN,
            30 * index,
            1_205_000 * index,
            0.9 * index,
            Edit(index, 0, None, {"stem": 2}, {0: 2}, ()),
            0.25,
            (50 * (2 + 2 * index), 50 * (4 + 2 * index)),
            10 * (4 + 2 * index),
        )
        for index in (1, 2)
    )
    return GrowResult(
        dataset="spots & <stripes>",
        images=(1437, 360),
        held_out=0,
        settings=GrowSettings(network="my<net>:make", epochs=7, steps=2),
        plan=Schedule(_stage(0, 4), (_stage(1, 6), _stage(2, 8)), 2.0, left={"head": "an output"}),
        macs=_BUDGET,
        steps=tuple(steps),
        evaluations=tuple(looks),
        growths=growths,
        arms=(_arm(GROWN, 0.9, 8), _arm(LARGE, 0.88, 8), _arm(SMALL, 0.935, 4)),
        leads=(Lead(LARGE, 2.0, 0.75), Lead(SMALL, -3.5, 1.85)),
        redrawn=(),
        seconds=21.4,
    )


def test_the_report_is_one_file_that_loads_nothing(compared: GrowResult, tmp_path: Path) -> None:
    text = write_grow_report(compared, tmp_path).read_text(encoding="utf-8")
    assert {file.name for file in tmp_path.iterdir()} == {"report.html", "curves.png"}
    assert text.count("data:image/png;base64,") == 4  # light and dark, wide and narrow
    assert not re.search(r"https?://|@import|url\(|<script|<link", text)
    assert "spots &amp; &lt;stripes&gt;" in text
    assert "<code>my&lt;net&gt;:make</code>" in text


def test_the_report_has_the_plan_the_widths_and_the_arms(
    compared: GrowResult, tmp_path: Path
) -> None:
    text = write_grow_report(compared, tmp_path).read_text(encoding="utf-8")
    for expected in ("20 % of the arithmetic", "20.1%", "90.00%", "88.00%", "93.50%", "4.8", "400"):
        assert expected in text
    assert "left alone: an output" in text
    assert LEARNING in text
    assert text.index(LEARNING) < text.index(KEEPING[1:])
    head, rows = arm_tables.width_rows(compared)
    assert head == (
        "layer",
        "start",
        "after growth 1",
        "after growth 2",
        "grown, in the end",
        "large",
    )
    assert rows[0] == ("stem", "4", "6", "8", "8", "8")


def test_the_verdict_names_who_is_ahead_and_by_how_much(compared: GrowResult) -> None:
    told = arm_tables.verdict(compared)
    assert "the grown network (90.00% of 360 test images)" in told
    assert "2.00 ±0.75 points ahead of the large one (88.00%)" in told
    assert "3.50 ±1.85 points behind the small one (93.50%)" in told
    assert "The second difference is below two of them" in told
    assert "3.5 s for the grown one, 1.2 s for the large one and 4.8 s for the small one" in told
    assert "one run says little" in told


@pytest.mark.parametrize(
    ("points", "words"),
    [
        (
            (-2.0, -3.5),
            ["2.00 ±0.50 points behind the large", "3.50 ±0.50 points behind the small"],
        ),
        (
            (0.0, 2.0),
            ["level (±0.50 points) with the large", "2.00 ±0.50 points ahead of"],
        ),
        ((0.6, 1.0), ["0.60 ±0.50 points ahead of", "The first difference is below two of them"]),
        ((0.4, -0.3), ["0.40 ±0.50 points ahead of the large", "Both differences are below two"]),
    ],
)
def test_the_verdict_is_true_whoever_wins(
    compared: GrowResult, points: tuple[float, float], words: list[str]
) -> None:
    leads = tuple(Lead(arm, by, 0.5) for arm, by in zip((LARGE, SMALL), points, strict=True))
    told = arm_tables.verdict(replace(compared, leads=leads))
    for word in words:
        assert word in told
    assert ("may be chance" in told) == any(0 < abs(by) < 1 for by in points)


def test_remarks_say_what_happened_and_nothing_else(compared: GrowResult) -> None:
    told = " ".join(arm_tables.remarks(compared))
    assert "7 epochs of the large network: 6 M multiply-adds" in told
    assert "0.5 of the grown network's are for growing itself" in told
    assert not re.search("token|held out|score", told)
    odd = replace(compared, redrawn=("token",), held_out=143)
    told = " ".join(arm_tables.remarks(odd))
    for expected in ("initialises token", "143 training images are held out"):
        assert expected in told
    assert "growths came" not in arm_tables.verdict(compared)
    unfinished = replace(compared, growths=compared.growths[:1])
    assert "Only 1 of 2 growths came" in arm_tables.verdict(unfinished)


def test_a_frozen_run_says_which_way_it_shows(compared: GrowResult, tmp_path: Path) -> None:
    frozen = replace(compared, settings=replace(compared.settings, freeze=True))
    text = write_grow_report(frozen, tmp_path).read_text(encoding="utf-8")
    assert text.index(KEEPING) < text.index(LEARNING[1:])
    assert "not for growing towards a size" in text


def _grey(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("L"))


def test_the_picture_shows_growths_and_curves_that_differ_without_colours(
    compared: GrowResult,
) -> None:
    looks = arm_figures._LOOKS.values()
    assert len({look.line for look in looks}) == len({look.marker for look in looks}) == 3
    picture = arm_figures.curves(compared, themes.LIGHT)
    assert picture == arm_figures.curves(compared, themes.LIGHT)
    without = arm_figures.curves(replace(compared, growths=()), themes.LIGHT)
    dark = arm_figures.curves(compared, themes.DARK)
    assert (_grey(picture) < 60).sum() > (_grey(without) < 60).sum()
    assert _grey(dark).mean() < 100 < 200 < _grey(picture).mean()


@needs_browser
def test_a_browser_shows_the_page_on_narrow_and_wide_screens(
    compared: GrowResult, tmp_path: Path
) -> None:
    assert_readable(write_grow_report(compared, tmp_path), tmp_path)
