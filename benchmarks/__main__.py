"""Measures speed and memory, claim by claim, and compares with the committed thresholds.

python -m benchmarks
python -m benchmarks --quick
python -m benchmarks --only training-frozen-12 --only fused-inference
python -m benchmarks --page
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from pathlib import Path

import click
import torch
from rich.console import Console

from benchmarks.speed.catalogue import CLAIMS
from benchmarks.speed.machine import commit, machine
from benchmarks.speed.results import FOLDER, Entry, Measurement, read, write
from benchmarks.speed.settings import FULL_ROUNDS, QUICK_ROUNDS, Claim, Settings
from benchmarks.speed.tables import PAGE, terminal_table, write_page
from benchmarks.speed.thresholds import Thresholds

console = Console()


@click.command()
@click.option(
    "--only",
    multiple=True,
    metavar="CLAIM",
    type=click.Choice([claim.name for claim in CLAIMS]),
    help="Only this claim; can be repeated.",
)
@click.option("--quick", is_flag=True, help="Small networks, to see that everything runs.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--rounds", type=click.IntRange(1), help=f"Default: {FULL_ROUNDS}.")
@click.option("--threads", type=click.IntRange(1), help="Of torch on the CPU; default: its own.")
@click.option(
    "--json",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where results are kept; those of other claims stay. Default: the file in "
    "benchmarks/results, or none with --quick.",
)
@click.option("--page", is_flag=True, help="Write the table in benchmarks/README.md, and stop.")
def main(
    only: tuple[str, ...],
    *,
    quick: bool,
    device: str,
    rounds: int | None,
    threads: int | None,
    path: Path | None,
    page: bool,
) -> None:
    """Measures claims about speed and memory; exit code 1 if a threshold is broken."""
    if page:
        write_page()
        console.print(f"wrote {PAGE}")
        return
    settings = Settings(
        quick=quick,
        device=device,
        rounds=rounds or (QUICK_ROUNDS if quick else FULL_ROUNDS),
        threads=threads or torch.get_num_threads(),
    )
    if path is None and not quick:
        path = FOLDER / f"speed-{device}.json"
    chosen = [claim for claim in CLAIMS if not only or claim.name in only]
    known = read(path) if path else {}
    entries: list[Entry] = []
    missing: list[str] = []
    settings.prepare()
    gc.freeze()  # or each collection goes through all of torch again
    for number, claim in enumerate(chosen, 1):
        console.rule(f"{number} of {len(chosen)}: {claim.name}", align="left")
        console.print(claim.says, markup=False, highlight=False, soft_wrap=True)
        if claim.needs not in ("", settings.device):
            console.print(f"  not run: it needs {claim.needs}", style="bold")
            continue

        def keep(entry: Entry) -> None:
            known[entry.claim] = entry
            if path:
                write(path, [known[each.name] for each in CLAIMS if each.name in known])

        try:
            entries.append(measure(claim, settings, keep))
        except ModuleNotFoundError as error:
            console.print(f"  not run: {error}; see benchmarks/requirements.txt", style="bold red")
            missing.append(claim.name)
    raise SystemExit(judge(entries, missing, settings))


def measure(
    claim: Claim,
    settings: Settings,
    keep: Callable[[Entry], None] = lambda _: None,
    budget: float = math.inf,
) -> Entry:
    """Runs one claim, and prints each number as it comes.

    Args:
        claim: The claim.
        settings: How it is measured.
        keep: Given the numbers so far after each.
        budget: Seconds after which no further case begins.
    """
    measurements: list[Measurement] = []
    started = time.perf_counter()
    entry = Entry(
        claim=claim.name,
        says=claim.says,
        command=command(claim, settings),
        commit=commit(),
        machine=machine(settings),
        measurements=measurements,
    )
    with console.status(claim.name):
        for one in claim.run(settings):
            measurements.append(one)
            console.print(
                f"  {one.case}: {one.text}   {one.beside_text}", highlight=False, soft_wrap=True
            )
            keep(entry)
            gc.collect()
            if settings.device == "cuda":
                torch.cuda.empty_cache()
            if time.perf_counter() - started > budget:
                console.print(f"  its {budget:.0f} s are over: no further case", style="bold")
                break
    console.print(f"  {time.perf_counter() - started:.0f} s", style="dim")
    return entry


def command(claim: Claim, settings: Settings) -> str:
    """What measures a claim again, by itself."""
    parts = ["python -m benchmarks --only", claim.name]
    parts += ["--quick"] * settings.quick
    parts += [f"--device {settings.device}"] * (settings.device != "cpu")
    return " ".join(parts)


def judge(entries: list[Entry], missing: list[str], settings: Settings) -> int:
    """Prints the table of verdicts; the exit code."""
    thresholds = Thresholds.read()
    wide = Console(width=max(console.width, 160)) if not console.is_terminal else console
    wide.print(terminal_table(entries, thresholds, quick=settings.quick))
    broken = thresholds.broken(entries, quick=settings.quick)
    for title, names in (("thresholds broken:", broken), ("claims not run:", missing)):
        if names:
            console.print(title, style="bold red")
            console.print("\n".join(f"  {name}" for name in names), highlight=False)
    if broken or missing:
        return 1
    console.print("no threshold is broken")
    return 0


if __name__ == "__main__":
    main()
