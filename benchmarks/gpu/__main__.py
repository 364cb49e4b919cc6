"""Measures on one GPU all that the page shows in its column for it, in less than ten minutes.

python -m benchmarks.gpu
python -m benchmarks.gpu --device cpu --quick --json /tmp/found.json

The first lines tell which card; the last ones which parts were not measured, and why. Results are
written after each case, so that it can be stopped at any moment. `python -m benchmarks --page` puts
them on the page. It needs `pip install -e . torchvision rich click` beside a torch for the card,
and a compiler for the compiled parts.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
import torch
from rich.console import Console

from benchmarks.gpu.plan import PARTS
from benchmarks.gpu.running import run_parts
from benchmarks.speed.results import FOLDER, read
from benchmarks.speed.tables import notes_of, terminal_table
from benchmarks.speed.thresholds import Thresholds

console = Console(width=140)


@click.command()
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
@click.option("--quick", is_flag=True, help="Small networks, two rounds: to see that it runs.")
@click.option("--only", multiple=True, type=click.Choice([part.claim for part in PARTS]))
@click.option("--minutes", type=float, default=9.5, show_default=True, help="For all parts.")
@click.option("--json", "path", type=click.Path(path_type=Path, dir_okay=False), help="Results.")
def main(
    device: str, *, quick: bool, only: tuple[str, ...], minutes: float, path: Path | None
) -> None:
    """Runs the parts and prints a table; exit code 1 if one was not measured that could be."""
    if path is None:
        if quick or device == "cpu":
            raise click.UsageError("give --json PATH: only a full run on cuda has its own place")
        path = FOLDER / "speed-cuda.json"
    if device == "cuda":
        if not torch.cuda.is_available():
            raise click.ClickException(f"torch {torch.__version__} sees no CUDA device here")
        console.print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    parts = [part for part in PARTS if not only or part.claim in only]
    options = [device, "quick" if quick else "full", str(path.absolute())]
    why = run_parts(parts, options, device=device, minutes=minutes, console=console)
    entries = read(path)
    console.print(terminal_table(entries.values(), Thresholds.read(), quick=quick))
    for name, reason in why.items():
        console.print(f"not measured, or not to the end: {name}: {reason}", highlight=False)
    notes_of(path).write_text(json.dumps(why, indent=1) + "\n")
    sys.exit(any(not reason.startswith("needs ") for reason in why.values()))


if __name__ == "__main__":
    main()
