"""Claim: what `splitgrow.save_pretrained` writes is read by `from_pretrained` as the same model.

    python -m benchmarks.pretrained

For each family of transformers in the list of COVERAGE.md a small model grows in each way, with
random values in all that is new, and is saved. A process that cannot import splitgrow reads it:
outputs and greedy text are compared. Results are kept in benchmarks/results/pretrained.json after
each family, also after Ctrl-C; families that are there are not tried again. --page writes the table
of benchmarks/README.md.
"""

from __future__ import annotations

import fnmatch
import json
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.page import PAGE, put_between
from benchmarks.pretrained.table import table
from benchmarks.pretrained.trying import reader, tried
from benchmarks.runs import FOLDER
from benchmarks.vision import torchvision


def measure(path: Path, only: str) -> None:
    """Tries the families that are missing and writes each as it is done."""
    from benchmarks.coverage.catalogues.transformers_models import names, subject  # noqa: PLC0415

    found = kept(path)
    with reader() as apart:
        for name in names():
            family = subject(name).family
            if "(" in name or family in found or not fnmatch.fnmatch(family, only):
                continue
            try:
                found[family] = tried(subject(name), apart)
            except Exception as error:  # noqa: BLE001 - the record says so
                found[family] = {"all": {"result": "wrong", "reason": f"{error!r:.300}"}}
            results = ", ".join(f"{way} {one['result']}" for way, one in found[family].items())
            click.echo(f"{family}: {results}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n")


def kept(path: Path) -> dict[str, Any]:
    """The results in a file; none if there is none."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


@click.command()
@click.option("--json", "path", type=click.Path(path_type=Path), default=FOLDER / "pretrained.json")
@click.option("--only", default="*", help="A pattern of families.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--page", is_flag=True, help="Only write the table.")
def main(path: Path, only: str, threads: int, *, page: bool) -> None:
    """Grown models of transformers, saved and read without splitgrow."""
    torch.set_num_threads(threads)
    torchvision()
    if not page:
        try:
            measure(path, only)
        except KeyboardInterrupt:
            click.echo("Stopped; the finished families are kept, and the next call goes on.")
    if not path.exists():
        raise click.UsageError(f"{path} is missing: run without --page first")
    text = table(kept(path))
    click.echo(text)
    if page:
        put_between(PAGE, "<!-- pretrained -->", "<!-- /pretrained -->", text)


if __name__ == "__main__":
    main()
