"""The page that tells what was measured, and the places on it where results go."""

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).parent / "README.md"


def put_between(page: Path, start: str, end: str, text: str) -> None:
    """Replaces what a page has between two markers.

    Raises:
        ValueError: If they are not there; the page is left as it is.
    """
    before, begin, rest = page.read_text().partition(start)
    _, finish, after = rest.partition(end)
    if not (begin and finish):
        raise ValueError(f"{page} has no {start} and {end}")
    page.write_text(f"{before}{begin}\n{text}{finish}{after}")
