"""Models of transformers: small configurations, random weights, tensors as arguments.

A model is named by its class; a family is a model type, as transformers' configurations name it.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

from torch import nn

from benchmarks.coverage.catalogues import Subject
from benchmarks.coverage.catalogues.transformers_models.families import FAMILIES, Family
from benchmarks.coverage.catalogues.transformers_models.settings import configuration, transformers


def names() -> list[str]:
    """The names of all models: their class, and whether a variant ties head and embedding."""
    return list(_listed())


def version() -> str:
    """The library's version."""
    return str(transformers.__version__)


def totals() -> dict[str, int]:
    """How many models and families there are in this list."""
    return {"models": len(names()), "families": len(FAMILIES)}


def subject(name: str) -> Subject:
    """The model of a name."""
    family, tied = _listed()[name]
    return Subject(
        library="transformers",
        name=name,
        family=family.kind,
        build=partial(_build, family, tied),
        samples=(family.sample,),
        roles=tied is None,
    )


@cache
def _listed() -> dict[str, tuple[Family, bool | None]]:
    """For each name its family and whether head and embedding are tied; None as they come."""
    listed: dict[str, tuple[Family, bool | None]] = {}
    for family in FAMILIES:
        listed[family.model] = (family, None)
        for tied in family.ties:
            listed[f"{family.model} ({'tied' if tied else 'untied'})"] = (family, tied)
    return listed


def _build(family: Family, tied: bool | None) -> nn.Module:  # noqa: FBT001
    own = {} if tied is None else {"tie_word_embeddings": tied}
    model: Any = getattr(transformers, family.model)
    return model(configuration(family.kind, {**family.options, **own}))  # type: ignore[no-any-return]
