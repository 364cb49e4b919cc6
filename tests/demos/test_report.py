from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from browser import assert_readable, needs_browser
from PIL import Image

from splitgrow.cli.ways import KEEPING
from splitgrow.demos import figures, themes
from splitgrow.demos.report import write_report
from splitgrow.demos.results import BlockMap, Recovery, Result
from splitgrow.growth.reporting import BlockArea


class _Page(HTMLParser):
    """What a reader meets: the text, the tags that are open at the end, and what is loaded."""

    VOID = frozenset(("meta", "img", "source"))

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.open, self.sources = "", list[str](), list[str]()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.sources += [value or "" for name, value in attributes if name in ("src", "srcset")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def _pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def _rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)])


def _share(pixels: np.ndarray, colour: str) -> float:
    return float((np.abs(pixels.astype(int) - _rgb(colour)) <= 2).all(axis=2).mean())


def test_the_report_is_one_file_that_loads_nothing(result: Result, tmp_path: Path) -> None:
    path = write_report(result, tmp_path)
    text = path.read_text(encoding="utf-8")
    page = _Page(text)
    assert page.open == []
    assert len(page.sources) == 8  # two pictures: light and dark, wide and narrow
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert not re.search(r"https?://|@import|url\(|<script|<link", text)


def test_the_pictures_beside_the_report_are_those_inside_it(result: Result, tmp_path: Path) -> None:
    page = _Page(write_report(result, tmp_path).read_text(encoding="utf-8"))
    inside = {base64.b64decode(source.partition(",")[2]) for source in page.sources}
    assert len(inside) == 8
    for name in ("learning.png", "blocks.png"):
        assert (tmp_path / name).read_bytes() in inside


def test_the_report_says_what_was_measured(result: Result, tmp_path: Path) -> None:
    text = _Page(write_report(result, tmp_path).read_text(encoding="utf-8")).text
    for expected in ("81.25%", "96.25%", "5,678", "5,555", "0.75", "3.2e-06", "3.0e-08"):
        assert expected in text
    for growth in result.growths:
        for change in growth.edit.changes:
            assert change.name in text
    assert text.count("the same, bit for bit") == 2
    assert f"This page shows one of two ways to grow. {KEEPING}" in text


def test_the_report_says_so_if_an_old_network_was_lost(result: Result, tmp_path: Path) -> None:
    lost = replace(result, recoveries=(Recovery(0, 0.5, False, 0.25),))
    text = _Page(write_report(lost, tmp_path).read_text(encoding="utf-8")).text
    assert "differ by up to 2.5e-01" in text
    assert "bit for bit" not in text


def test_names_are_escaped(result: Result, tmp_path: Path) -> None:
    text = write_report(result, tmp_path).read_text(encoding="utf-8")
    assert "spots &amp; &lt;stripes&gt;" in text
    assert "<stripes>" not in text


@pytest.mark.parametrize("theme", [themes.LIGHT, themes.DARK])
def test_the_learning_curves_are_drawn_in_the_colours_of_the_theme(
    result: Result, theme: themes.Theme
) -> None:
    pixels = _pixels(figures.learning(result, theme))
    assert pixels.shape[1] > 1000
    assert _share(pixels, theme.paper) > 0.5
    assert _share(pixels, theme.train) > 0.001
    assert _share(pixels, theme.test) > 0.001


def test_a_growth_is_marked_where_it_happened(result: Result) -> None:
    marked = _pixels(figures.learning(result, themes.LIGHT))
    moved = [replace(growth, step=growth.step + 30) for growth in result.growths]
    assert not np.array_equal(
        _pixels(figures.learning(replace(result, growths=tuple(moved)), themes.LIGHT)), marked
    )


def test_blocks_cover_the_area_of_their_share_of_the_weight(result: Result) -> None:
    areas = {0: 8 * 8, 1: 12 * 12 - 8 * 8, 2: 18 * 18 - 12 * 12}
    pixels = _pixels(figures.draw_block_map(_unlabelled(result.block_map), themes.LIGHT))
    shares = {at: _share(pixels, colour) for at, colour in enumerate(("#56B4E9", "#E69F00"))}
    assert shares[1] / shares[0] == pytest.approx(areas[1] / areas[0], rel=0.1)


def _unlabelled(blocks: BlockMap) -> BlockMap:
    """The same with nothing drawn over the colours: no block is a hatched helper."""
    return BlockMap(blocks.layer, tuple(replace(block, kind="new") for block in blocks.blocks))


def test_a_block_in_several_pieces_is_drawn_in_all_of_them() -> None:
    whole = BlockArea("original", 0, ((0, 10),), ((0, 10),))
    pieces = BlockArea("new", 1, ((2, 4), (6, 8)), ((0, 10),))
    some = _share(_pixels(figures.draw_block_map(BlockMap("a", (whole,)), themes.LIGHT)), "#E69F00")
    both = _share(
        _pixels(figures.draw_block_map(BlockMap("a", (whole, pieces)), themes.LIGHT)), "#E69F00"
    )
    assert some == 0
    assert both > 0.2  # four tenths of the weight


def test_a_layer_too_fine_for_labels_is_drawn_without_them() -> None:
    blocks = tuple(
        BlockArea("new", generation, ((generation, generation + 1),), ((0, 40),))
        for generation in range(40)
    )
    pixels = _pixels(figures.draw_block_map(BlockMap("fine", blocks), themes.LIGHT))
    assert _share(pixels, "#111111") < 0.001


def test_a_run_of_one_step_a_phase_can_be_drawn(result: Result) -> None:
    short = replace(
        result,
        steps=result.steps[:3],
        evaluations=tuple(replace(result.evaluations[0], step=at) for at in (1, 2, 3)),
        growths=tuple(replace(growth, step=at) for at, growth in enumerate(result.growths, 1)),
    )
    assert _share(_pixels(figures.learning(short, themes.LIGHT)), themes.LIGHT.test) > 0.001


def test_the_same_run_gives_the_same_bytes(result: Result, tmp_path: Path) -> None:
    first = write_report(result, tmp_path).read_bytes()
    assert write_report(result, tmp_path).read_bytes() == first


@needs_browser
def test_a_browser_shows_the_page_on_narrow_and_wide_screens(
    result: Result, tmp_path: Path
) -> None:
    assert_readable(write_report(result, tmp_path), tmp_path)
