"""Pages in a real browser: headless Chromium, by its own command line."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from html import unescape
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
WIDTHS = (390, 1200)

_LOOK = """<script>addEventListener("load", () => {
  const width = document.documentElement.clientWidth, wide = [];
  for (const part of document.body.querySelectorAll("*")) {
    const scrolled = part.parentElement.closest(".scroll");
    if (!scrolled && part.getBoundingClientRect().right > width + 1) wide.push(part.outerHTML);
  }
  const images = [...document.images].filter((image) => !image.naturalWidth).length;
  parent.postMessage({width, wide: wide.map((text) => text.slice(0, 80)), images}, "*");
})</script>"""
_FRAME = """<!doctype html><title></title><script>addEventListener("message", (message) => {{
  document.title = JSON.stringify(message.data); }})</script>
<iframe src="{page}" style="width: {width}px; height: 900px; border: 0"></iframe>"""
"""A window has 500 pixels at least, a frame as few as one likes."""
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--enable-logging=stderr", "--virtual-time-budget=10000", "--dump-dom"),
)


@dataclass(frozen=True)
class Looked:
    """A page as a browser has it.

    Attributes:
        width: The width of the window, in its pixels.
        wide: The elements outside of scrolling boxes that are wider than the window.
        broken: The number of images that did not load.
        errors: The errors and warnings that it printed to its console.
    """

    width: int
    wide: tuple[str, ...]
    broken: int
    errors: tuple[str, ...]


def look(page: Path, width: int, folder: Path, *, dark: bool = False) -> Looked:
    """Opens a page.

    Args:
        page: An HTML file that needs no other.
        width: The width of the window.
        folder: A folder for the browser's files.
        dark: Whether the screen is dark.
    """
    assert CHROMIUM is not None
    watched = folder / f"watched-{width}-{dark}.html"
    watched.write_text(page.read_text().replace("</body>", f"{_LOOK}</body>"))
    frame = folder / f"frame-{width}-{dark}.html"
    frame.write_text(_FRAME.format(page=watched.as_uri(), width=width))
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    profile = f"--user-data-dir={folder / f'profile-{width}-{dark}'}"
    command = [CHROMIUM, *_FLAGS, scheme, profile, "--window-size=1400,900", frame.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    title = re.search(r"<title>(\{.*?\})</title>", done.stdout)
    assert title is not None, done.stdout[:500]
    found = json.loads(unescape(title.group(1)))
    errors = (line for line in done.stderr.splitlines() if ":CONSOLE" in line)
    return Looked(found["width"], tuple(found["wide"]), found["images"], tuple(errors))


def assert_readable(page: Path, folder: Path) -> None:
    """Opens a page on a narrow dark screen and on a wide light one; nothing may be wrong."""
    for width in WIDTHS:
        found = look(page, width, folder, dark=width == WIDTHS[0])
        assert found.wide == ()
        assert found.errors == ()
        assert found.broken == 0


needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
