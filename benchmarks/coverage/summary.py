"""Numbers out of a library's records."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from benchmarks.coverage.findings import STATUSES
from benchmarks.coverage.results import DONE

Record = dict[str, Any]


@dataclass(frozen=True)
class Times:
    """Seconds of analysis over models that both libraries analysed.

    Attributes:
        models: How many they are.
        median: Median of splitgrow and of the peer.
        worst: Longest of splitgrow and of the peer.
    """

    models: int
    median: tuple[float, float]
    worst: tuple[float, float]


def is_analysed(record: Record) -> bool:
    """Whether splitgrow has analysed a model, whatever came after."""
    return bool(record.get("kinds")) or record["status"] in DONE | {"fixed", "blind"}


def statuses(records: Iterable[Record]) -> dict[str, int]:
    """How many models have each status, all statuses included."""
    counts = Counter(record["status"] for record in records)
    return {status: counts[status] for status in STATUSES}


def peer_statuses(records: Iterable[Record]) -> Counter[str]:
    """How many models have each status of the peer; the peer was asked for all but "not run"."""
    return Counter(record.get("peer", {}).get("status", "not run") for record in records)


def share_of_layers(records: Iterable[Record]) -> tuple[int, int]:
    """How many convolutions and linear layers of the analysed models can grow, and of how many."""
    can = there = 0
    for record in filter(is_analysed, records):
        kinds = [n for kind, n in record["kinds"].items() if "Conv" in kind or "Linear" in kind]
        can += sum(growable for growable, _ in kinds)
        there += max(record["modules"], sum(count for _, count in kinds))
    return can, there


def times(records: Iterable[Record]) -> Times | None:
    """How long the analysis took, where both managed it; None if there is no such model."""
    pairs = [
        (record["seconds"]["analysis"], record["peer"]["seconds"])
        for record in filter(is_analysed, records)
        if record.get("peer", {}).get("status") == "ok" and "analysis" in record["seconds"]
    ]
    if not pairs:
        return None
    ours, theirs = zip(*pairs, strict=True)
    return Times(
        models=len(pairs),
        median=(statistics.median(ours), statistics.median(theirs)),
        worst=(max(ours), max(theirs)),
    )


def families(records: Iterable[Record]) -> tuple[int, int]:
    """How many families have a verified model, and how many were tried."""
    tried = {record.get("family", "") for record in records}
    done = {record.get("family", "") for record in records if record["status"] in DONE}
    return len(done), len(tried)


def tagged(records: Iterable[Record], tag: str) -> list[Record]:
    """The models of a tag."""
    return [record for record in records if tag in record.get("tags", ())]


def reasons_for_fixed_layers(records: Iterable[Record]) -> Counter[str]:
    """How many layers are fixed for each kind of reason."""
    counts: Counter[str] = Counter()
    for record in records:
        for reason, layers in record.get("fixed", {}).items():
            counts[general(reason)] += layers
    return counts


def reasons_of_role(records: Iterable[Record], role: str) -> Counter[str]:
    """The families in which layers of a role cannot grow, by the commonest reason in each."""
    found = [record["roles"][role] for record in records]
    return Counter(general(one["reason"]) for one in found if one["reason"])


def by_reason(records: Iterable[Record], status: str) -> dict[str, list[str]]:
    """The models of a status, by reason, the commonest first."""
    found: dict[str, list[str]] = {}
    for record in records:
        if record["status"] == status:
            reason = record["reason"]
            if status == "fixed" and record.get("fixed"):
                reason = max(record["fixed"], key=record["fixed"].__getitem__)
            found.setdefault(general(reason), []).append(record["name"])
    return dict(sorted(found.items(), key=lambda item: (-len(item[1]), item[0])))


def without_graph(records: Iterable[Record]) -> tuple[int, Counter[str]]:
    """How many of the verified models torch.fx traces, and why it does not trace the others."""
    said = [record["fuse"] for record in records if record["status"] == "verified"]
    reasons = (re.sub(r"^(no graph|merge only): (.*?fused: )?", "", text) for text in said)
    return said.count("ok"), Counter(general(text) for text in reasons if text != "ok")


def remarks(records: Iterable[Record]) -> dict[str, list[str]]:
    """The models that a note was made about, by note."""
    found: dict[str, list[str]] = {}
    for record in records:
        for note in record.get("notes", ()):
            found.setdefault(general(note), []).append(record["name"])
    return found


def general(reason: str) -> str:
    """A reason without what is special about one model: names, places and sizes."""
    reason = re.sub(r"(?: at| in)? ?[\w./-]+\.py:\d+(?: in \w+)?:?", "", reason)
    reason = re.sub(r"`[\w]+(?:\.[\w]+)+`|`\d+`", "`...`", reason)
    reason = re.sub(r"\b\w+\.forward\b", "forward", reason)
    reason = re.sub(r"\b\d+(?:\.\d+)?(?:e-?\d+)?\b", "n", reason)
    reason = reason.split(". ")[0]  # what follows is advice
    return re.sub(r"\s+", " ", reason).strip(" :;,.")
