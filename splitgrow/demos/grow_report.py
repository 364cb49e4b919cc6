"""Writes the report of a network that grew, compared with the large one from the start."""

from __future__ import annotations

from html import escape
from pathlib import Path

from splitgrow.cli.ways import KEEPING, LEARNING
from splitgrow.demos import arm_figures, arm_tables, pages
from splitgrow.demos.arm_results import GROWN, LARGE, GrowResult


def write_grow_report(result: GrowResult, folder: Path) -> Path:
    """Writes curves.png and report.html into `folder`.

    Returns:
        The path of the HTML file.
    """
    drawings = {
        "curves": pages.Drawing(
            lambda theme: arm_figures.curves(result, theme),
            "Test accuracy and loss of the grown, the large and the small network, over the"
            " multiply-adds and over the seconds of training, with a dashed line at each growth",
        )
    }
    title = f"splitgrow grow: {result.settings.network} on {result.dataset}"
    return pages.write_page(folder, title, drawings, lambda images: _body(result, images))


def _body(result: GrowResult, images: dict[str, str]) -> str:
    train, test = result.images
    settings = result.settings
    way = KEEPING if settings.freeze else LEARNING
    sizes = f"{result.plan.start.parameters:,} to {result.arm(GROWN).parameters:,}"
    remarks = "\n".join(f"<p>{_code(remark)}</p>" for remark in arm_tables.remarks(result))
    return f"""<h1>A network that grew, and the large one from the start</h1>
<p class="soft">{escape(result.dataset)}: {train:,} training and {test:,} test images. The network
<code>{escape(settings.network)}</code> grew from {sizes} parameters in {len(result.growths)}
growths, with new units by <code>{escape(settings.init)}</code>; seed {settings.seed};
{result.seconds:.0f} seconds in all.</p>
{pages.two_ways(way)}

<h2>Which is ahead</h2>
<p>{escape(arm_tables.verdict(result))}</p>
{_arms(result)}
{remarks}

<h2>Over arithmetic and over time</h2>
<figure>{images["curves"]}
<figcaption>Left, the networks train for the same multiply-adds; right, the same curves over the
time that this took here. Dashed lines mark the growths. Low accuracies of the
beginning lie below the picture. A small network takes more steps for the
same arithmetic, and a step has costs that do not shrink with the widths.</figcaption></figure>

<h2>The plan, and the growths</h2>
{_plan(result)}

<h2>Widths</h2>
{_widths(result)}"""


def _code(text: str) -> str:
    """A text as HTML, with all between backticks as code."""
    parts = escape(text).split("`")
    return "".join(f"<code>{p}</code>" if at % 2 else p for at, p in enumerate(parts))


def _arms(result: GrowResult) -> str:
    head = arm_tables.ARM_HEAD
    return pages.table(head, arm_tables.arm_rows(result), numbers=range(1, len(head)))


def _plan(result: GrowResult) -> str:
    head = arm_tables.PLAN_HEAD
    rows = (tuple(map(escape, row)) for row in arm_tables.plan_lines(result))
    return pages.table(head, rows, numbers=(0, *range(2, len(head))))


def _widths(result: GrowResult) -> str:
    head, rows = arm_tables.width_rows(result)
    cells = ((f"<code>{escape(name)}</code>", *widths) for name, *widths in rows)
    told = (
        ""
        if result.arm(GROWN).widths == result.arm(LARGE).widths
        else "<p>The grown network does not have the large one's widths in the end.</p>\n"
    )
    left = "".join(
        f'<p class="soft"><code>{escape(name)}</code> was left alone: {escape(why)}.</p>\n'
        for name, why in result.plan.left.items()
    )
    return told + pages.table(head, cells, numbers=range(1, len(head))) + left
