"""The channel graph: the layers whose widths grow together, and those that cannot grow, and why.

The graph outlives growth: when a group gains units, every axis on which it lies gets longer, and
nothing else changes.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from splitgrow.analysis.channels.channel_axes import Axis, Run, groups_of
from splitgrow.analysis.channels.channel_groups import Groups
from splitgrow.layers.tensor_holder import blocks_path
from splitgrow.layers.types import Start, TensorUse


@dataclass(frozen=True)
class LayerNode:
    """A layer with channels of its own, or a module's own tensor along channels.

    Attributes:
        name: Its module path; of a tensor the name in the state_dict.
        kind: The name of its stock layer's class, such as ``Conv2d``.
        sized: Whether its width can be asked for.
        ins: The axis of its input channels.
        outs: The axis of its output channels.
        looks_up: Whether its inputs are the rows of a table, of which it looks some up.
        followed: Whether the axes are its own; otherwise they are placeholders that never grow.
        use: For a parameter or buffer of a module, how it lies along channels; None for a module.
    """

    name: str
    kind: str
    sized: bool
    ins: Axis
    outs: Axis
    looks_up: bool = False
    followed: bool = True
    use: TensorUse | None = None

    @property
    def path(self) -> str:
        """The path of the module that it is, or becomes when it grows."""
        return self.name if self.use is None else blocks_path(self.name)


@dataclass(frozen=True)
class HeldNumber:
    """A number in a module's attribute that follows a width, such as a number of heads.

    Attributes:
        module: The module's path.
        attribute: The attribute's name, with an index in brackets if it is a list or tuple.
        axis: An axis of that length.
    """

    module: str
    attribute: str
    axis: Axis


@dataclass(frozen=True)
class StartStates:
    """The values that new units have at first, in one way to grow.

    Attributes:
        ins: By layer and group, those of the units that it reads.
        outs: By layer and group, those of the units that it makes.
        sharing: The norms whose outputs count for less, since only layers read them that go on
            reading every copy.
    """

    ins: Mapping[str, Mapping[int, Start]]
    outs: Mapping[str, Mapping[int, Start]]
    sharing: frozenset[str] = frozenset()


@dataclass
class ChannelGraph:
    """All layers of a model with the groups that their channels belong to.

    Attributes:
        groups: The store of groups.
        nodes: The layers by module path, in order of execution.
        aliases: For every path of a module the one by which it is known.
        numbers: The numbers that modules hold and that follow widths.
        ways: For groups that a norm over all channels reads, the ways in which they can grow, the
            preferred one first.
        multiples: For groups whose width some kernel wants in multiples, the number of units of the
            smallest step, and what it says of others.
        lost: For these groups, why the other ways do not leave the function as it is; first the
            ways that the norms would take.
        starts: By way, the first values of new units.
        ties: The tensors that several layers hold, each with its holders: a path and a name.
        outputs: The axes of the tensors that the model returns in evaluation mode.
        training_outputs: Those in training mode, if that was followed by itself.
        touched: The layers whose tensors forward uses outside of their calls.
        assigned: The paths at which forward itself puts modules, with the likeness of these.
        chosen: Where several numbers could follow a width, the choice at each place that is not the
            first one.
        choices: The places where there was a choice.
        modes_alike: Whether forward ran the same ops in evaluation and in training.
    """

    groups: Groups = field(default_factory=Groups)
    nodes: dict[str, LayerNode] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    numbers: tuple[HeldNumber, ...] = ()
    ways: dict[int, tuple[str, ...]] = field(default_factory=dict)
    lost: dict[int, dict[str, str]] = field(default_factory=dict)
    multiples: dict[int, tuple[int, str]] = field(default_factory=dict)
    starts: Mapping[str, StartStates] = field(default_factory=dict)
    ties: tuple[tuple[tuple[str, str], ...], ...] = ()
    outputs: tuple[tuple[Axis, ...], ...] = ()
    training_outputs: tuple[tuple[Axis, ...], ...] = ()
    touched: set[str] = field(default_factory=set)
    assigned: tuple[tuple[str, str], ...] = ()
    chosen: Mapping[str, int] = field(default_factory=dict)
    choices: frozenset[str] = frozenset()
    modes_alike: bool = False

    def sized(self) -> list[LayerNode]:
        """The layers whose width can be asked for, in order of execution."""
        return [node for node in self.nodes.values() if node.sized]

    def growing_groups(self, axis: Axis) -> list[int]:
        """The groups on an axis that can grow, the one at its end first."""
        groups = groups_of(self.groups.resolve(axis))
        return [group for group in groups if not self.groups.is_fixed(group)][::-1]

    def fix_group(self, group: int, reason: str) -> dict[str, str]:
        """Fixes a group; returns the layers whose width could be asked for, with the reason."""
        on_it = dict.fromkeys(self.makers(group), reason)
        self.groups.fix((Run(group, 1),), reason)
        return on_it

    def makers(self, group: int) -> frozenset[str]:
        """The layers whose width can be asked for, and on whose outputs a growing group lies."""
        return frozenset(n.name for n in self.sized() if group in self.growing_groups(n.outs))

    def output_groups(self) -> frozenset[int]:
        """The groups whose units are channels of a tensor that the model returns, in either mode.

        The heads of a cache of keys and values are none: each is several units of its layer, which
        lie along another dimension there.
        """
        found = set()
        returned = (axis for axes in (*self.outputs, *self.training_outputs) for axis in axes)
        for run in (run for axis in returned for run in self.groups.resolve(axis)):
            if run.group is None or run.group in found:
                continue
            repeats = (
                own.repeat
                for name in self.makers(run.group)
                for own in self.groups.resolve(self.nodes[name].outs)
                if own.group == run.group
            )
            if run.repeat >= min(repeats, default=1):
                found.add(run.group)
        return frozenset(found)

    def output_shapes(self, growth: Mapping[int, int]) -> list[tuple[int, ...]]:
        """The shapes of the tensors that the model returns once groups have grown."""
        grown = self.groups.grown(growth)
        return [tuple(map(grown.length, axes)) for axes in self.outputs]

    def starts_on(
        self,
        node: LayerNode,
        side: Literal["ins", "outs"],
        ways: Mapping[int, str],
        growing: Container[int],
    ) -> tuple[Start, ...]:
        """The first values of each insertion on a layer's axis.

        Args:
            node: The layer.
            side: Which of its axes.
            ways: The ways in which groups grow.
            growing: The groups that grow.
        """
        found = []
        for run in self.groups.resolve(getattr(node, side)):
            if run.group is not None and run.group in growing:
                states = self.starts.get(ways.get(run.group, ""))
                own = getattr(states, side).get(node.name, {}) if states is not None else {}
                # Nothing has looked up the new rows of a table yet.
                free = Start.ZERO if node.looks_up and side == "ins" else Start.FREE
                found.append(own.get(run.group, free))
        return tuple(found)

    def grows_by_copies(self, node: LayerNode) -> bool:
        """Whether the new units of a layer have to be copies of the old ones."""
        return any(self.way_of(group) == "duplicate" for group in self.growing_groups(node.outs))

    def makes_new_of_old(self, node: LayerNode) -> bool:
        """Whether new units of a layer are made of the values of the old ones."""
        return any(
            self.way_of(group) not in {"", "zero"} for group in self.growing_groups(node.outs)
        )

    def way_of(self, group: int, asked: str | None = None) -> str:
        """The way in which a group grows: the one that is asked for, or else the preferred one."""
        known = self.ways.get(group, ())
        return asked if asked in known else next(iter(known), "")

    def unit_step(self, group: int, way: str | None = None) -> int:
        """The smallest number of units that a group can gain.

        Args:
            group: The group.
            way: The way in which it grows; None for the preferred one.
        """
        if self.way_of(group, way) == "duplicate":
            return self.groups.width(group)
        return self.multiples.get(group, (1, ""))[0]

    def multiplicity(self, axis: Axis, group: int) -> int:
        """The number of positions that an axis gains for each unit that a group gains."""
        runs = self.groups.resolve(axis)
        return sum(run.repeat for run in runs if run.group == group)

    def step(self, node: LayerNode) -> int:
        """The smallest number of units by which a layer can grow; 0 if it cannot grow."""
        return min(self.steps(node).values(), default=0)

    def steps(self, node: LayerNode, way: str | None = None) -> dict[int, int]:
        """The growth of a layer for the smallest gain of a group, the group at its end first."""
        groups = self.growing_groups(node.outs)
        return {g: self.multiplicity(node.outs, g) * self.unit_step(g, way) for g in groups}

    def tied(self, node: LayerNode) -> list[str]:
        """The other layers whose width grows with this one's."""
        found = self._by_group("outs", self.growing_groups(node.outs))
        return [name for name in found if name != node.name]

    def readers(self, node: LayerNode) -> list[str]:
        """The layers that read this layer's units, and so get helpers when it grows."""
        return self._by_group("ins", groups_of(self.groups.resolve(node.outs)))

    def _by_group(self, side: str, groups: Iterable[int]) -> list[str]:
        """The layers on whose inputs or outputs one of the groups lies, in order of execution."""
        order = {name: index for index, name in enumerate(self.nodes)}
        found = {name for group in groups for name in self._index[side].get(group, ())}
        return sorted(found, key=order.__getitem__)

    @cached_property
    def _index(self) -> dict[str, dict[int, list[str]]]:
        """For each group the layers that read it, and those that grow with it."""
        index: dict[str, dict[int, list[str]]] = {"ins": {}, "outs": {}}
        for node in self.nodes.values():
            sums = node.use is not None and node.use.ins is not None
            for group in groups_of(self.groups.resolve(node.ins)) if node.sized or sums else ():
                index["ins"].setdefault(group, []).append(node.name)
            for group in self.growing_groups(node.outs) if node.sized else ():
                index["outs"].setdefault(group, []).append(node.name)
        return index

    def reason(self, node: LayerNode) -> str:
        """Why a layer cannot grow; empty if it can."""
        if self.growing_groups(node.outs):
            return ""
        return "; ".join(self.groups.reasons(node.outs)) or "its channels are of a constant number"
