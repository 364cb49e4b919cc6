"""Which settings of a model's class make a model of a given form, found by making such models.

The search knows no names. It changes one setting at a time and looks at what that does to a model
without values: which dimensions grow, and by how much; which modules' numbers change. So it learns
what each setting means for the class at hand, and solves for the values that the form needs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from splitgrow.pretrained.model_form import ModelForm, Number, distance
from splitgrow.pretrained.setting_effects import UNSET, SettingEffect, other_values

Settings = Mapping[str, Any]
ModelMaker = Callable[[Settings], nn.Module]
"""Makes a model on the meta device with some settings changed; may raise anything."""

_ROUNDS = 12
"""Settings that are changed at most."""
_TRIED = 8
"""Candidates that are tried in each round, and in pairs."""


@dataclass(frozen=True)
class SearchResult:
    """The result of a search.

    Attributes:
        changes: The settings to change, with their new values.
        form: The form of the model that is made then.
        left: The names of the tensors that still have other shapes; empty if the form fits.
        odd: Numbers with a fraction, such as a norm's eps, that settings set to another value.
    """

    changes: Settings
    form: ModelForm
    left: tuple[str, ...]
    odd: tuple[Number, ...] = ()

    def rank(self, target: ModelForm) -> tuple[int, int, int]:
        """How far it is from the form: in tensors, in numbers with a fraction, in others."""
        return len(self.left), len(self.odd), len(self.form.numbers_unlike(target))


class SettingsSearch:
    """A search for the settings of a class.

    Args:
        settings: The present settings by name: those that may change.
        made: Makes a model with some of them changed.
    """

    def __init__(self, settings: Settings, made: ModelMaker) -> None:
        self._settings, self._made = settings, made
        self._start: dict[str, Any] = {}
        self._forms: dict[tuple[tuple[str, Any], ...], ModelForm | None] = {}
        self._effects: dict[str, SettingEffect | None] = {}

    def form(self, changes: Settings) -> ModelForm | None:
        """The form of the model with some settings changed; None if there is no such model.

        Raises:
            MemoryError: If there is too little memory.
        """
        key = tuple(sorted(changes.items(), key=lambda item: item[0]))
        if key not in self._forms:
            try:
                self._forms[key] = ModelForm.of(self._made(changes))
            except MemoryError:
                raise
            except Exception:  # noqa: BLE001 - a class checks its settings as it likes
                self._forms[key] = None
        return self._forms[key]

    def find(self, target: ModelForm) -> SearchResult | None:
        """The settings for a form, as near as they come; None if the class cannot be made.

        Where several settings give tensors the same shapes, as more heads and wider heads do, the
        numbers that modules hold tell which is meant.

        Args:
            target: The form.
        """
        self._start = self._implied()
        best = self._find(target, frozenset(), {})
        if best is None:
            return None
        if best.left or best.odd:
            told = self._told(target)
            pinned = [{name: value} for name, value in told.items()]
            excluded = [frozenset((name,)) for name in best.changes]
            attempts = [(frozenset(pins), pins) for pins in (*pinned, told)]
            for without, pins in (*attempts, *((each, {}) for each in excluded)):
                other = self._find(target, without, pins)
                if other is not None and other.rank(target) < best.rank(target):
                    best = other
        return best

    def _find(
        self, target: ModelForm, without: frozenset[str], pins: Settings
    ) -> SearchResult | None:
        changes = {**self._start, **pins}
        form = self.form(changes)
        if form is None:
            return None
        changes, form = self._approached(changes, form, target, without)
        for _ in range(_ROUNDS):
            better = None if form.unlike(target) else self._by_numbers(changes, form, target)
            if better is None:
                break
            changes, form = better
        changes, form = self._needed(changes, form, target)
        odd = [key for key in form.numbers_unlike(target) if type(target.numbers[key]) is float]
        return SearchResult(changes, form, tuple(form.unlike(target)), tuple(odd))

    def _told(self, target: ModelForm) -> dict[str, Any]:
        """The values of settings that modules hold as they are, where these agree."""
        found: dict[str, Any] = {}
        for name, setting in self._settings.items():
            effect = self.effect(name)
            values = {
                target.numbers.get(key)
                for key, slope, start in (effect.sets_numbers() if effect is not None else ())
                if (slope, start) == (1, 0)
            }
            if len(values) == 1 and (value := values.pop()) not in (None, setting):
                found[name] = value
        return found

    def _implied(self) -> dict[str, Any]:
        """The values that settings have which are not set, where a class makes them of others.

        Once they are set, others can change without them.
        """
        base, found = self.form({}), dict[str, Any]()
        if base is None:
            return found
        for name in (name for name, value in self._settings.items() if value is None):
            effect = self.effect(name)
            values = set()
            for tensor, dim, slope, start in effect.dimensions() if effect is not None else ():
                if tensor in base.shapes:  # it may be there only once the setting is set
                    values.add((base.shapes[tensor][dim] - start) / slope)
            if len(values) == 1 and (value := values.pop()) == int(value):
                made = self.form({name: int(value)})
                if made is not None and made == base:
                    found[name] = int(value)
        self._effects.clear()
        return found

    def _needed(
        self, changes: dict[str, Any], form: ModelForm, target: ModelForm
    ) -> tuple[dict[str, Any], ModelForm]:
        """Takes back the changes without which the form is as near."""
        for name in list(changes):
            fewer = {key: value for key, value in changes.items() if key != name}
            made = self.form(fewer)
            if made is None or distance(made, target) > distance(form, target):
                continue
            if len(made.numbers_unlike(target)) <= len(form.numbers_unlike(target)):
                changes, form = fewer, made
        return changes, form

    def _approached(
        self,
        changes: dict[str, Any],
        form: ModelForm,
        target: ModelForm,
        without: frozenset[str],
    ) -> tuple[dict[str, Any], ModelForm]:
        """Changes settings until all tensors have their shapes, or none brings these nearer."""
        for _ in range(_ROUNDS):
            better = self._nearer(changes, form, target, without) if form.unlike(target) else None
            if better is None:
                break
            changes, form = better
        return changes, form

    def effect(self, name: str) -> SettingEffect | None:
        """What a setting does, seen by changing it; None if nothing does not fail or change."""
        if name not in self._effects:
            self._effects[name] = self._seen(name)
        return self._effects[name]

    def _seen(self, name: str) -> SettingEffect | None:
        value = self._start.get(name, self._settings[name])
        base = self.form(self._start)
        if isinstance(value, (int, float)):
            for other in other_values(value):
                form = self.form({**self._start, name: other})
                if form is not None and base is not None:
                    return SettingEffect((value, other), (base, form))
        elif value is None:
            known = [(v, f) for v in UNSET if (f := self.form({name: v})) is not None]
            if len(known) > 1:
                (one, first), (two, second) = known[:2]
                return SettingEffect((one, two), (first, second))
        return None

    def nearest(
        self, found: SearchResult, target: ModelForm
    ) -> tuple[tuple[str, Any], list[str]] | None:
        """A setting that gives most tensors their shapes, and the tensors that then differ.

        Args:
            found: The outcome of the search, where tensors are left.
            target: The form that was searched for.
        """
        if found.changes:
            left = set(found.left)
            sets = {name: self._tensors_of(name) & left for name in found.changes}
            name = max(sets, key=lambda name: len(sets[name]))
            if sets[name]:
                return (name, found.changes[name]), list(found.left)
        votes = self._votes(found.changes, found.form, target)
        for (name, value), _ in votes.most_common(_TRIED):
            form = self.form({**found.changes, name: value})
            if form is not None and form.shapes.keys() == target.shapes.keys():
                return (name, value), form.unlike(target)
        return None

    def _tensors_of(self, name: str) -> set[str]:
        """The tensors whose shapes a setting sets."""
        effect = self.effect(name)
        return set() if effect is None else {tensor for tensor, *_ in effect.dimensions()}

    def _votes(
        self, changes: Settings, form: ModelForm, target: ModelForm
    ) -> Counter[tuple[str, Any]]:
        """Values of settings, by the number of dimensions that would then be right."""
        votes: Counter[tuple[str, Any]] = Counter()
        wrong = set(form.unlike(target))
        for name in self._settings:
            effect = self.effect(name)
            if effect is None:
                continue
            now = changes.get(name, self._settings[name])
            for tensor, dim, slope, start in effect.dimensions():
                wanted, has = target.shapes.get(tensor), form.shapes.get(tensor)
                if tensor not in wrong or wanted is None or has is None or len(wanted) <= dim:
                    continue
                found = {(wanted[dim] - start) / slope}
                if now is not None:
                    # Straight on, as a factor of the length, or as what another is divided by.
                    ratio = wanted[dim] / has[dim] if wanted[dim] and has[dim] else 1.0
                    found = {now + (wanted[dim] - has[dim]) / slope, now * ratio, now / ratio}
                votes.update((name, int(v)) for v in found - {now} if v > 0 and v == int(v))
            if wrong - form.shapes.keys() or wrong - target.shapes.keys():
                self._vote_for_counts(name, now, effect, votes)
        return votes

    def _nearer(
        self, changes: Settings, form: ModelForm, target: ModelForm, without: frozenset[str]
    ) -> tuple[dict[str, Any], ModelForm] | None:
        """One or two changes after which fewer tensors have other shapes."""
        ranked = self._ranked(changes, form, target, without)
        found = self._best(changes, ranked, form, target)
        if found is None:
            pairs = [{**one, **two} for n, one in enumerate(ranked) for two in ranked[:n]]
            together: dict[str, Any] = {}
            for change in reversed(ranked):
                together |= change
            found = self._best(changes, [*pairs, together], form, target)
        for change in () if found is not None else ranked:  # a second one that the first calls for
            changed = {**changes, **change}
            made = self.form(changed)
            if made is not None:
                after = self._ranked(changed, made, target, without | change.keys())
                found = self._best(changed, after, form, target)
            if found is not None:
                break
        return found

    def _ranked(
        self, changes: Settings, form: ModelForm, target: ModelForm, without: frozenset[str]
    ) -> list[dict[str, Any]]:
        """The changes of one setting with most votes."""
        votes = self._votes(changes, form, target).most_common()
        allowed = [item for item, _ in votes if item[0] not in without]
        return [{name: value} for name, value in allowed[:_TRIED]]

    def _best(
        self,
        changes: Settings,
        tried: Sequence[Settings],
        form: ModelForm,
        target: ModelForm,
    ) -> tuple[dict[str, Any], ModelForm] | None:
        """Those of some further changes that bring a form nearest; None if none does."""
        found = [
            ({**changes, **change}, made)
            for change in tried
            if (made := self.form({**changes, **change})) is not None
        ]
        found.sort(
            key=lambda item: (*distance(item[1], target), len(item[1].numbers_unlike(target)))
        )
        nearer = bool(found) and distance(found[0][1], target) < distance(form, target)
        return found[0] if nearer else None

    @staticmethod
    def _vote_for_counts(
        name: str, now: Any, effect: SettingEffect, votes: Counter[tuple[str, Any]]
    ) -> None:
        """Proposes one more and one less of what a setting counts, such as blocks."""
        one, two = effect.forms
        if one.shapes.keys() != two.shapes.keys() and type(now) is int:
            votes[name, now + 1] += 1
            votes[name, now - 1] += now > 1

    def _by_numbers(
        self, changes: Settings, form: ModelForm, target: ModelForm
    ) -> tuple[dict[str, Any], ModelForm] | None:
        """One change after which fewer attributes of modules differ, and no tensor does.

        Others may have to follow it, as the number of keys' heads follows that of all heads.
        """
        wrong = form.numbers_unlike(target)
        votes: Counter[tuple[str, Any]] = Counter()
        for name, setting in self._settings.items():
            effect = self.effect(name) if wrong else None
            now = changes.get(name, setting)
            for key, slope, start in effect.sets_numbers() if effect is not None else ():
                wanted, has = target.numbers.get(key), form.numbers.get(key)
                if key in wrong and isinstance(wanted, (int, float)) and wanted:
                    straight = wanted if (slope, start) == (1, 0) else (wanted - start) / slope
                    # It may also be divided by the setting, as a width by a number of heads.
                    quotient = straight if now is None else now * has / wanted
                    fitting = {_like(setting, value) for value in (straight, quotient)}
                    votes.update((name, value) for value in fitting - {None, now})
        for (name, value), _ in votes.most_common(_TRIED):
            changed = {**changes, name: value}
            made = self.form(changed)
            if made is None:
                continue
            changed, made = self._approached(changed, made, target, frozenset((name,)))
            if not made.unlike(target) and len(made.numbers_unlike(target)) < len(wrong):
                return changed, made
        return None


def _like(setting: Any, value: float) -> float | None:
    """A value of a setting's type; None if it has none like it."""
    if type(setting) is float:
        return float(value)
    return int(value) if value == int(value) else None
