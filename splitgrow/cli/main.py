"""The `splitgrow` command: reads the arguments and leaves the work to modules loaded on demand.

Nothing here needs torch, so that `--help` and a mistyped option are answered at once.
"""

from __future__ import annotations

import importlib.metadata
from functools import partial
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from splitgrow.cli.arguments import (
    POSITIVE,
    SEED,
    SMALL,
    NameChoice,
    NamedCommands,
    NamedPath,
    PositiveFloat,
    check_target,
    data_option,
    input_option,
    limit_option,
    load_module,
    max_gb_option,
    setting_option,
    shown_options,
    size_option,
    threads_option,
)
from splitgrow.cli.continual_commands import compare, continual
from splitgrow.cli.grow_commands import grow
from splitgrow.cli.prune_commands import prune
from splitgrow.cli.settings import DemoSettings
from splitgrow.cli.shapes import Shape
from splitgrow.cli.ways import KEEPING, LEARNING
from splitgrow.errors import SplitGrowError

_NOT_BY = {
    "progressive": "--progressive leaves as they are",
    "grow": "--grow doubles: `splitgrow grow --factor` takes another factor",
}
"""Why some demos do not take --by."""

_INTERRUPTED = 130  # 128 + SIGINT, as shells have it

_setting = partial(setting_option, DemoSettings)


# In a help text, \b keeps the lines of the paragraph that follows as they are.
_HELP = f"""
Grow and prune PyTorch models while they train, and make them plain again to deploy.

{LEARNING} See `splitgrow grow`.

{KEEPING} See `splitgrow demo` and `splitgrow continual`.

\b
Examples:
  splitgrow demo
  splitgrow demo --deeper
  splitgrow demo --progressive --data cifar10.zip --epochs 3
  splitgrow inspect mymodels.resnet:make --input 1,3,224,224
  splitgrow grow mymodels.resnet:make --data cifar10.zip --factor 2
  splitgrow prune mymodels.resnet:make --checkpoint run.pt --data cifar10.zip
      --target macs=0.5 --epochs 3 --out smaller.safetensors
  splitgrow export mymodels.resnet:make run.safetensors plain.pt2
  splitgrow continual --method cpg --tasks 5 --out runs/cpg
  splitgrow compare runs/cpg runs/packnet
"""

_DEMO_HELP = f"""
Train a small residual CNN, grow it twice while it trains, and fuse it.

Shows that the old networks are still inside, bit for bit, and writes a report with pictures.
Each growth is followed by a phase of training in which only the new blocks learn.

{KEEPING} So do this demo and --deeper.

{LEARNING} So do --grow and --progressive.

\b
Three more demos, with the same options and a report of their own:
  --deeper       insert layers, a gate and a copy of a block while it trains
  --progressive  train an autoencoder from 4x4 pixels up, each level faded in
  --grow         double all widths in three growths, and compare with the
                 large network from the start at equal arithmetic

\b
PATH is one of:
  data.npz         with x_train, y_train, x_test, y_test
  folder, .zip     with train/CLASS/*.jpg and test/CLASS/*.jpg (or val/)
  folder           with train-images-idx3-ubyte.gz and the other three
  folder, .tar.gz  of CIFAR-10 or CIFAR-100, python or binary version

\b
Examples:
  splitgrow demo
  splitgrow demo --deeper
  splitgrow demo --grow
  splitgrow demo --progressive --data fashion-mnist --epochs 1
  splitgrow demo --seed 7 --by 0.25 --out runs/quarter
  splitgrow demo --data fashion-mnist --width 8 --epochs 1
  splitgrow demo --data cifar10.zip --limit 5000
"""

_INSPECT_HELP = """
List the layers of a model: which can grow or shrink, by which step, and which go along.

MODULE is importable from here, or the path of a .py file; FACTORY is a function without
arguments that makes the model, a class, or a model itself. DIRECTORY has the config.json of a
model of transformers; its inputs are known where it reads words or pictures.

\b
Examples:
  splitgrow inspect torchvision.models:resnet18 --input 1,3,224,224
  splitgrow inspect nets/unet.py:make --input 1,1,64,64 --json
  splitgrow inspect mytext:Encoder --input 1,16:int64
  splitgrow inspect mypair:Siamese --input 1,3,32,32 --input 1,3,32,32
  splitgrow inspect mytext:Encoder --input words=1,16:int64 --input mask=1,16
  splitgrow inspect checkpoints/llama
"""

_EXPORT_HELP = """
Make a checkpoint plain, for those who do not have splitgrow.

MODULE:FACTORY makes the model as it was before it grew, or DIRECTORY has its config.json (see
`splitgrow inspect`). CHECKPOINT is a file by splitgrow.save. The suffix of OUT chooses the
format, or --format does:

\b
  .safetensors  the merged network's tensors, under the model's own names
  .pt, .pth     the same as a state_dict of torch
  .pt2          the merged network, for torch.export.load, without its class
  .onnx         the merged network for ONNX Runtime and others, checked by it
  --format hf   a directory for from_pretrained, with a config that fits

\b
Examples:
  splitgrow export mymodels.resnet:make run.safetensors plain.safetensors
  splitgrow export nets/unet.py:make run.safetensors unet.pt2 --generation 0
  splitgrow export nets/unet.py:make run.safetensors unet.onnx --dynamic sizes
  splitgrow export checkpoints/llama run.safetensors llama-grown --format hf
"""


class _Commands(NamedCommands):
    """A group whose commands always end with one line on stderr and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SplitGrowError as error:
            raise click.ClickException(str(error)) from error
        except KeyboardInterrupt as interrupt:
            kept = str(interrupt)  # the work names there the kept results
            click.echo(f"Interrupted: {kept}." if kept else "Interrupted.", err=True)
            ctx.exit(_INTERRUPTED)


def _version(ctx: click.Context, _option: click.Parameter, asked: bool) -> None:  # noqa: FBT001  # click's order
    if not asked or ctx.resilient_parsing:
        return
    try:
        version = importlib.metadata.version("splitgrow")
    except importlib.metadata.PackageNotFoundError:
        version = "(not installed)"
    click.echo(f"splitgrow {version}")
    ctx.exit()


@click.group(cls=_Commands, help=_HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_version,
    help="Show the version and exit.",
)
def main() -> None:
    """Runs a command."""


@main.command(help=_DEMO_HELP, short_help="Train, grow and fuse a small network.")
@click.option("--deeper", is_flag=True, help="Grow in depth: insert layers while it trains.")
@click.option(
    "--progressive", is_flag=True, help="Grow in resolution: an autoencoder of 4x4 pixels and up."
)
@click.option(
    "--grow", is_flag=True, help="Grow to learn, against the large network from the start."
)
@data_option
@click.option(
    "--out",
    type=NamedPath(file_okay=False),
    metavar="DIR",
    help="Where the report, its pictures and results.json go.  [default: splitgrow-demo,"
    " splitgrow-demo-deeper, -progressive or -grow]",
)
@click.option(
    "--epochs",
    type=POSITIVE,
    metavar="N",
    help="Epochs in each phase: before the first growth, and after each; with --grow those of the"
    " large network.  [default: by the number of images; for digits 14, 7 if --deeper]",
)
@_setting("--batch-size", type=POSITIVE, metavar="N", help="Images in a training step.")
@click.option(
    "--width",
    type=SMALL,
    metavar="N",
    help="Channels of the first stage (--progressive: half of those at full resolution)."
    "  [default: by the images' size, 4 for digits]",
)
@_setting(
    "--by",
    type=PositiveFloat(100),
    metavar="FRACTION",
    help="How much wider layers become: all of them, or one if --deeper.",
)
@_setting(
    "--learning-rate", type=PositiveFloat(10), metavar="X", help="Peak of the one-cycle schedule."
)
@_setting("--seed", type=SEED, metavar="N", help="For data, weights and order.")
@limit_option
@size_option
@max_gb_option
@threads_option
@shown_options(whole=True)
@click.pass_context
def demo(ctx: click.Context, /, *, out: Path | None, **options: Any) -> None:
    """Loads the demo, and runs it.

    Raises:
        click.UsageError: if the options do not go together.
    """
    chosen = [kind for kind in ("deeper", "progressive", "grow") if options.pop(kind)]
    if len(chosen) > 1:
        raise click.UsageError(f"--{chosen[0]} and --{chosen[1]} are two demos: choose one of them")
    kind = chosen[0] if chosen else "wider"
    if kind in _NOT_BY and ctx.get_parameter_source("by") is ParameterSource.COMMANDLINE:
        raise click.UsageError(f"--by is for widths, which {_NOT_BY[kind]}")
    folder = Path("splitgrow-demo" if kind == "wider" else f"splitgrow-demo-{kind}")
    load_module("splitgrow.demos.presentation").run_demo(kind=kind, out=out or folder, **options)


@main.command(help=_INSPECT_HELP, short_help="List the layers of a model that can grow or shrink.")
@click.argument("target", metavar="MODULE:FACTORY|DIRECTORY")
@input_option
@shown_options("Print only the names of the layers that can grow.")
def inspect(target: str, inputs: tuple[Shape, ...], shown: Any) -> None:
    """Loads the inspection, and runs it."""
    check_target(target)
    load_module("splitgrow.cli.inspect").inspect(target, inputs, shown)


@main.command(help=_EXPORT_HELP, short_help="Make a checkpoint plain.")
@click.argument("target", metavar="MODULE:FACTORY|DIRECTORY")
@click.argument("checkpoint", type=NamedPath())
@click.argument("out", type=NamedPath())
@click.option(
    "--generation",
    type=click.IntRange(min=0),
    metavar="N",
    help="The network as it was when this generation was closed.  [default: of today]",
)
@click.option(
    "--format",
    "kind",
    type=NameChoice(["hf", "onnx", "pt2", "safetensors", "pt"]),
    help="The format.  [default: by the suffix of OUT]",
)
@click.option("--fuse", is_flag=True, help="Fold norms into the layers before them, too.")
@click.option(
    "--dynamic",
    type=NameChoice(("batch", "sizes", "none")),
    help="The sizes of inputs that may vary in a program: the first of each, all that the network"
    " lets vary, or none.  [default: batch]",
)
@click.option(
    "--check/--no-check",
    default=None,
    help="Compare ONNX Runtime's results at several sizes with the network's; a file that computes"
    " something else is not written.  [default: check]",
)
@click.option("--force", "-f", is_flag=True, help="Replace OUT if it is there.")
@shown_options()
def export(target: str, checkpoint: Path, out: Path, *, shown: Any, **options: Any) -> None:
    """Loads the export, and runs it."""
    check_target(target)
    work = load_module("splitgrow.cli.export")
    work.export(target, checkpoint, out, work.ExportOptions(**options), shown)


main.add_command(grow)
main.add_command(prune)
main.add_command(continual)
main.add_command(compare)
