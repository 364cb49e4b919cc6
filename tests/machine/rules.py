"""The state machine: Hypothesis draws the steps of a life, and the laws hold after each."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from machine import acts, laws, removing, shrinking, trips
from machine.averages import MAKERS
from machine.life import Life, Refused
from machine.training import CLASSES, GROUPINGS

MOST_EDITS = 9
flags, small = st.booleans(), st.integers(0, 9)
seeds = st.integers(0, 999)


class Machine(RuleBasedStateMachine):
    """One life.

    Attributes:
        steps: The number of lives, and of the steps in them by name.
    """

    steps: ClassVar[Counter[str]] = Counter()
    life: Life
    count: int

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.before = torch.get_rng_state(), random.getstate()

    @initialize(seed=seeds, space=flags)
    def begin(self, seed: int, space: bool) -> None:
        self.steps["lives"] += 1
        self.life, self.count = Life(seed, space=space), 0

    def do(self, act: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """A step, and all laws."""
        with suppress(Refused):
            act(self.life, *args, **kwargs)
            self.steps[act.__name__] += 1
        self.count += 1
        laws.check(self.life, thorough=self.count % 4 == 0)  # some laws take longer

    def grows(self) -> bool:
        return len(self.life.model.state_dict()) < 400 and self.life.mirror.width < MOST_EDITS

    @precondition(grows)
    @rule(layer=small, n=st.integers(1, 3), to=st.sampled_from((1, 1, 1, 4)), freeze=flags,
          tell=flags, index=flags)  # fmt: skip
    def expand(self, layer: int, n: int, to: int, freeze: bool, tell: bool, index: bool) -> None:
        self.do(acts.expand, {layer: n}, to, freeze=freeze, tell=tell, index=index)

    @precondition(grows)
    @rule(layer=small, by=st.integers(1, 4), n=st.integers(1, 2), freeze=flags, tell=flags)
    def expand_two(self, layer: int, by: int, n: int, freeze: bool, tell: bool) -> None:
        self.do(acts.expand, {layer: n, layer + by: 2}, 1, freeze=freeze, tell=tell, index=False)

    @precondition(grows)
    @rule(n=st.integers(1, 2), freeze=flags, tell=flags)
    def expand_input(self, n: int, freeze: bool, tell: bool) -> None:
        self.do(acts.expand_input, n, freeze=freeze, tell=tell)

    @precondition(grows)
    @rule(place=small, kind=st.sampled_from(acts.KINDS), freeze=flags, tell=flags)
    def insert(self, place: int, kind: str, freeze: bool, tell: bool) -> None:
        self.do(acts.insert, place, kind, freeze=freeze, tell=tell)

    @rule(layer=small, by=st.sampled_from((0, 0, 1, 2)), how=st.sampled_from(shrinking.HOWS),
          n=st.integers(1, 3), seed=seeds, to=st.sampled_from((1, 1, 1, 2)),
          give_up=st.sampled_from((False, False, True)), tell=flags)  # fmt: skip
    def shrink(self, layer: int, by: int, how: str, n: int, to: int, **rest: Any) -> None:
        self.do(shrinking.shrink, [layer, layer + by], how, n, round_to=to, **rest)

    @precondition(lambda self: self.life.mirror.inserted)
    @rule(index=small, give_up=st.sampled_from((False, True)), tell=flags)
    def remove(self, index: int, give_up: bool, tell: bool) -> None:
        self.do(removing.remove, index, give_up=give_up, tell=tell)

    @precondition(grows)
    @rule(layer=small, how=st.sampled_from(shrinking.HOWS), n=st.integers(1, 3), seed=seeds,
          freeze=flags, optimizer=st.sampled_from(CLASSES),
          grouping=st.sampled_from(sorted(GROUPINGS)))  # fmt: skip
    def grow_train_and_shrink(
        self, layer: int, how: str, n: int, seed: int, freeze: bool, optimizer: str, grouping: str
    ) -> None:
        """Channels go that have an optimizer's state and averages, which is rare by chance."""
        if not self.life.averages:
            self.do(acts.make_average, sorted(MAKERS)[seed % len(MAKERS)], told=True)
        self.do(acts.make_optimizer, optimizer, grouping, by_name=True)
        self.do(acts.expand, {layer: 3}, 1, freeze=freeze, tell=True, index=False)
        self.do(Life.step, seed, training=True, passes=1)
        self.do(acts.update_averages, 2)
        give_up = seed % 3 == 0
        self.do(
            shrinking.shrink, [layer], how, n, seed=seed, round_to=1, give_up=give_up, tell=True
        )

    @precondition(grows)
    @rule(place=small, kind=st.sampled_from(acts.KINDS), seed=seeds,
          optimizer=st.sampled_from(CLASSES),
          grouping=st.sampled_from(sorted(GROUPINGS)))  # fmt: skip
    def insert_train_and_remove(
        self, place: int, kind: str, seed: int, optimizer: str, grouping: str
    ) -> None:
        """A layer goes that has an optimizer's state and averages."""
        if not self.life.averages:
            self.do(acts.make_average, sorted(MAKERS)[seed % len(MAKERS)], told=True)
        self.do(acts.make_optimizer, optimizer, grouping, by_name=True)
        self.do(acts.insert, place, kind, freeze=seed % 2 > 0, tell=True)
        self.do(Life.step, seed, training=True, passes=1)
        self.do(acts.update_averages, 2)
        if seed % 3 == 0:
            self.do(acts.expand, {place: 1}, 1, freeze=False, tell=True, index=False)
        self.do(removing.remove, 0, give_up=seed % 5 == 0, tell=True)

    @precondition(lambda self: self.life.mirror.fades)
    @rule(quarter=st.integers(1, 4))
    def fade_on(self, quarter: int) -> None:
        self.do(acts.fade_on, quarter)

    @rule(tell=flags)
    def consolidate(self, tell: bool) -> None:
        self.do(acts.consolidate, tell=tell)

    @precondition(lambda self: len(self.life.closed) < 4)
    @rule()
    def next_generation(self) -> None:
        self.do(acts.next_generation)

    @precondition(lambda self: self.life.closed)
    @rule()
    def unfreeze(self) -> None:
        self.do(acts.unfreeze)

    @rule(index=small)
    def freeze_by_hand(self, index: int) -> None:
        self.do(acts.freeze_by_hand, index)

    @rule(how=st.sampled_from(CLASSES), grouping=st.sampled_from(sorted(GROUPINGS)), by_name=flags)
    def make_optimizer(self, how: str, grouping: str, by_name: bool) -> None:
        self.do(acts.make_optimizer, how, grouping, by_name=by_name)

    @rule()
    def tell_later(self) -> None:
        self.do(acts.tell_later)

    @rule(seed=seeds, training=flags, passes=st.integers(1, 2))
    def advance(self, seed: int, training: bool, passes: int) -> None:
        self.do(Life.step, seed, training=training, passes=passes)

    @precondition(lambda self: len(self.life.averages) < 2)
    @rule(kind=st.sampled_from(sorted(MAKERS)), told=flags)
    def make_average(self, kind: str, told: bool) -> None:
        self.do(acts.make_average, kind, told=told)

    @precondition(lambda self: self.life.averages)
    @rule(times=st.integers(1, 3))
    def update_averages(self, times: int) -> None:
        self.do(acts.update_averages, times)

    @precondition(lambda self: self.life.averages)
    @rule()
    def drop_averages(self) -> None:
        self.do(Life.drop_averages)

    @rule(dtype=st.sampled_from((torch.float32, torch.float64, torch.float64, torch.bfloat16)))
    def cast(self, dtype: torch.dtype) -> None:
        self.do(acts.cast, dtype)

    @precondition(lambda self: self.life.space)
    @rule()
    def channels_last(self) -> None:
        self.do(acts.channels_last)

    @rule(path=st.sampled_from(("stem", "side", "block.first", "head")))
    def hook(self, path: str) -> None:
        self.do(acts.hook, path)
        self.do(acts.hooks_see)

    @rule(mode=st.sampled_from(("auto", "merged", "blockwise")))
    def execution(self, mode: str) -> None:
        self.life.mode = mode

    @rule(often=st.integers(0, 7))
    def compile_it(self, often: int) -> None:
        if often == 7:  # it takes a second
            self.do(acts.compile_it)

    @rule(often=st.integers(0, 7))
    def growable_again(self, often: int) -> None:
        if often > 5:  # a rule without arguments is drawn far more often than others
            self.do(acts.again)

    @rule(index=st.integers(0, 26))
    def mistake(self, index: int) -> None:
        self.do(acts.mistake, index)

    @precondition(lambda self: self.life.closed)
    @rule(generation=small)
    def inside_at(self, generation: int) -> None:
        self.do(acts.inside_at, generation)

    @rule(how=st.sampled_from(("deepcopy", "pickle", "torch.save")), go_on=flags)
    def copied(self, how: str, go_on: bool) -> None:
        self.do(trips.copied, how, go_on=go_on)

    @rule(go_on=flags, growable=flags, seed=seeds)
    def saved(self, go_on: bool, growable: bool, seed: int) -> None:
        self.do(trips.saved, self.folder, go_on=go_on, growable=growable, seed=seed)

    @rule(go_on=flags, early=flags, seed=seeds)
    def through_state_dicts(self, go_on: bool, early: bool, seed: int) -> None:
        self.do(trips.through_state_dicts, go_on=go_on, early=early, seed=seed)

    @rule()
    def keep_state(self) -> None:
        self.do(trips.keep_state)

    @precondition(lambda self: self.life.earlier)
    @rule(index=small)
    def load_earlier(self, index: int) -> None:
        self.do(trips.load_earlier, index)

    @rule()
    def without_journal(self) -> None:
        self.do(trips.without_journal)

    @rule(seed=seeds)
    def other_prefix(self, seed: int) -> None:
        self.do(trips.other_prefix, seed)

    def teardown(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        torch.set_rng_state(self.before[0])
        random.setstate(self.before[1])
        if getattr(self, "life", None) is not None and self.life.compiled is not None:
            torch._dynamo.reset()
