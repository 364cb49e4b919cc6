"""The table of what was found of saved models, for the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from benchmarks.pretrained.trying import WAYS

Found = Mapping[str, Mapping[str, Mapping[str, Any]]]


def table(found: Found) -> str:
    """For each way to grow how many families came out how, and why others were refused."""
    lines = [
        f"{len(found)} families.",
        "",
        "| grown | equal | gap | same text | refused | cannot grow | plain differs | wrong |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for way in WAYS:
        own = [ways[way] for ways in found.values() if way in ways]
        counts = Counter(str(one["result"]) for one in own)
        equal = [one for one in own if one["result"] == "equal"]
        gap = max((one["difference"] for one in equal), default=0.0)
        texts = [one["text"] for one in equal if "text" in one]
        cells = (
            f"{counts['equal']}",
            f"{gap:.0e}",
            f"{sum(texts)} of {len(texts)}" if texts else "",
            *(str(counts[result]) for result in ("refused", "no", "unread", "wrong")),
        )
        lines.append(f"| {way} | {' | '.join(cells)} |")
    reasons = Counter(_kind(one["reason"]) for one in _all(found) if one["result"] == "refused")
    lines += ["", "| times | why it was refused |", "|---|---|"]
    lines += [f"| {count} | {reason} |" for reason, count in reasons.most_common()]
    return "\n".join(lines) + "\n"


def _all(found: Found) -> list[Mapping[str, Any]]:
    return [one for ways in found.values() for one in ways.values()]


def _kind(reason: str) -> str:
    """What reasons of different models have in common."""
    if "does not allow" in reason:
        return "the config's own check of its settings, as a width that is no multiple of the heads"
    if "with vocab_size" in reason:
        return "a head alone, where the config has one size for head and embedding"
    if "with hidden_size" in reason or "it would fit if" in reason:
        return "further layers would have to grow alike, which the message names"
    if "has no place in the model" in reason:
        return "something inserted for which the class has no place"
    return "no setting of the config describes it"
