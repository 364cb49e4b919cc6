"""The roles of a model's layers: found by widths and owners, grown each by itself."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import splitgrow
from benchmarks.coverage import checking, roles
from benchmarks.coverage.catalogues import Subject, catalogue
from benchmarks.coverage.roles import ROLES, layers_by_role

pytestmark = pytest.mark.zoo


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class SmallAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads = 2
        self.query, self.key, self.value = (nn.Linear(6, 8) for _ in range(3))
        self.output = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:2], self.heads, 4)
        parts = (layer(x).view(shape).transpose(1, 2) for layer in self.layers())
        mixed = nn.functional.scaled_dot_product_attention(*parts)
        return self.output(mixed.transpose(1, 2).flatten(2))

    def layers(self) -> tuple[nn.Module, ...]:
        return self.query, self.key, self.value


class TextForLabels(nn.Module):
    """An attention, a feed-forward part and a head, on a stream that a LayerNorm fixes."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(vocab_size=11, hidden_size=6, num_heads=2)
        self.words = nn.Embedding(11, 6)
        self.attention = SmallAttention()
        self.norm = nn.LayerNorm(6)
        self.up, self.down = nn.Linear(6, 10), nn.Linear(10, 6)
        self.labels = nn.Linear(6, 3)

    def forward(self, words: Tensor) -> Tensor:
        x = self.words(words)
        x = x + self.attention(x)
        x = self.norm(x)
        x = x + self.down(self.up(x).relu())
        return self.labels(x.mean(1))


class SmallExperts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(2, 6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.up[0]


class MixtureForLabels(TextForLabels):
    """Its feed-forward parts are a Linear and a Parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = SmallExperts()

    def forward(self, words: Tensor) -> Tensor:
        return super().forward(words) + self.experts(self.words(words)).mean((1, 2))[:, None]


def subject(kind: type[nn.Module] = TextForLabels) -> Subject:
    samples = (lambda: (torch.randint(11, (2, 5)),),)
    return Subject("here", "small", "family", kind, samples, roles=True)


def test_layers_are_found_by_their_roles() -> None:
    model = splitgrow.growable(TextForLabels().eval(), torch.randint(11, (2, 5)))
    assert layers_by_role(model, [layer.name for layer in splitgrow.handle(model).layers]) == {
        "MLP": ["up"],
        "heads": ["attention.query", "attention.key", "attention.value"],
        "stream": ["words"],
        "vocabulary": ["words"],
        "head": ["labels"],
    }


def test_each_role_is_grown_by_itself() -> None:
    found = checking.check(subject())
    assert (found.status, found.reason) == ("verified", "")
    results = {role: found.roles[role]["result"] for role in ROLES}
    expected = {"MLP": "yes", "heads": "yes", "stream": "yes", "vocabulary": "yes", "head": "yes"}
    assert results == expected
    assert found.roles["heads"]["laws"]["merge"] <= found.tolerance


class FixedExperts(SmallExperts):
    def forward(self, x: Tensor) -> Tensor:
        return x @ self.up[0].softmax(-1)


class MixtureOfFixed(MixtureForLabels):
    """Experts by a matrix whose entries depend on each other."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = FixedExperts()


def test_experts_in_a_parameter_grow_as_a_part_of_the_role() -> None:
    found = checking.check(subject(MixtureForLabels)).roles["MLP"]
    assert (found["result"], found["can"], found["there"]) == ("yes", 2, 2)


def test_experts_in_a_parameter_that_cannot_grow_count_as_a_part() -> None:
    found = checking.check(subject(MixtureOfFixed)).roles["MLP"]
    assert (found["result"], found["can"], found["there"]) == ("part", 1, 2)
    assert "plain Parameters" in found["reason"]


def test_a_merge_that_computes_something_else_breaks_its_role(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    honest = splitgrow.merge

    @torch.no_grad()
    def crooked(model: nn.Module) -> nn.Module:
        merged: Any = honest(model)
        merged.labels.bias += 1e-6
        return merged

    monkeypatch.setattr(roles.splitgrow, "merge", crooked)
    found = checking.check(subject())
    assert found.roles["MLP"]["result"] == "wrong"
    assert "merge" in found.roles["MLP"]["reason"]


def test_at_least_a_hundred_families_are_listed_once_each_with_their_roles() -> None:
    listed = catalogue("transformers")
    subjects = [listed.subject(name) for name in listed.names()]
    with_roles = [one.family for one in subjects if one.roles]
    assert len(with_roles) == len(set(with_roles)) == listed.totals()["families"] >= 100


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the library's, about itself
def test_a_decoder_writes_the_same_with_and_without_a_cache_once_its_heads_have_grown() -> None:
    found = checking.check(catalogue("transformers").subject("Qwen3ForCausalLM"))
    heads = found.roles["heads"]
    assert heads["result"] == "yes"
    assert heads["laws"].keys() >= {"text", "cached", "merged cached"}
