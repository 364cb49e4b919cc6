"""Reports in a real browser; and the browser's look would find what is wrong with a page."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import WIDTHS, look, needs_browser

pytestmark = needs_browser

_PAGE = "<!doctype html><html><head><title>x</title></head><body>{}</body></html>"


@pytest.mark.parametrize(
    ("body", "wide", "broken", "errors"),
    [
        ("<p>short</p>", 0, 0, 0),
        ('<div style="width: 5000px">wide</div>', 1, 0, 0),
        (
            '<div class="scroll" style="overflow: auto"><p style="width: 5000px">x</p></div>',
            0,
            0,
            0,
        ),
        ('<img src="data:image/png;base64,AAAA">', 0, 1, 0),
        ("<script>console.error('no')</script>", 0, 0, 1),
        ("<script>undefined.x</script>", 0, 0, 1),
    ],
)
def test_a_look_finds_what_is_wrong(
    body: str, wide: int, broken: int, errors: int, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    page.write_text(_PAGE.format(body))
    found = look(page, WIDTHS[0], tmp_path)
    assert (len(found.wide), found.broken, len(found.errors)) == (wide, broken, errors)
    assert found.width == WIDTHS[0]
