"""How time and memory grow with the size of a model, and with the number of processes.

python -m benchmarks.scale
python -m benchmarks.scale --only llama-layers --beyond
python -m benchmarks.scale --part ranks
python -m benchmarks.scale --page

Each result is kept in the folder of --runs as it is made; a stopped run goes on where it was.
"""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from benchmarks.scale.models import SERIES
from benchmarks.scale.running import FOLDER, measure

console = Console()


@click.command()
@click.option("--runs", type=click.Path(path_type=Path), default=FOLDER, help="Their folder.")
@click.option("--part", type=click.Choice(["steps", "ranks"]), default="steps")
@click.option("--only", multiple=True, type=click.Choice([*SERIES]), help="Steps: a series.")
@click.option("--repeats", type=click.IntRange(1), default=1, show_default=True)
@click.option("--beyond", is_flag=True, help="Steps: sizes beyond the fit, to see what breaks.")
@click.option("--page", is_flag=True, help="Write SCALE.md from the results, and stop.")
def main(
    runs: Path, part: str, only: tuple[str, ...], repeats: int, *, beyond: bool, page: bool
) -> None:
    """Measures models from small to large, or writes the page about them."""
    if page:
        from benchmarks.scale.page import write_page  # noqa: PLC0415 - matplotlib

        console.print(f"wrote {write_page(runs)}")
    elif part == "ranks":
        from benchmarks.scale.ranks import measure_ranks  # noqa: PLC0415

        measure_ranks(runs, repeats, console)
    else:
        measure(runs, only, repeats, beyond=beyond, console=console)


if __name__ == "__main__":
    main()
