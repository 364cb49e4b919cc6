"""Split layers: a grown layer, held as its original block and the blocks that each edit added.

A split layer knows its own blocks and where their channels lie. It knows nothing of its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from splitgrow.layers.attribute_access import Guarded, answer, refuse, set_on_blocks, tensor_names
from splitgrow.layers.block_roles import Block, BlockKind
from splitgrow.layers.channel_layout import Layout
from splitgrow.layers.compiled_code import drop_old_code_
from splitgrow.layers.composition import Composition
from splitgrow.layers.dispatch import LayerRun, Runner
from splitgrow.layers.live_tensor import LiveTensor
from splitgrow.layers.types import LayerType, known_layer_type
from splitgrow.layers.weight_views import make_dense_
from splitgrow.utils.inert_children import Inert
from splitgrow.utils.rollback import Undo
from splitgrow.utils.wrappers import is_managed, several_processes

__all__ = ["Block", "BlockKind", "SplitLayer", "stock"]


class SplitLayer(nn.ModuleList):
    """A grown layer: the original block first, then the blocks of every edit, all stock layers.

    A helper's output is added onto the outputs that existed at its birth; a new block's output is
    inserted among them. So leaving out the later blocks gives the layer's earlier output. Every way
    to run it computes that function.

    It answers for the attributes of a stock layer of its present size (``out_channels``,
    ``weight``, ``stride``), so code that only reads them still works.

    Attributes:
        blocks: The role of each stock layer, in the same order.
        ins: Where the input channels came from.
        outs: Where the output channels came from.
        view: The number of the last edit that is seen by `forward`; None for all.
    """

    blocks: tuple[Block, ...]
    ins: Layout
    outs: Layout
    view: int | None
    _runner: Runner | None

    def __init__(self, original: nn.Module) -> None:
        super().__init__([original])
        known = self.layer_type
        inputs, outputs = known.sizes(original)
        names, layer = known.tensors(original), type(original).__name__
        self.__dict__.update(
            blocks=(Block("original", 0),),
            ins=Layout.original(inputs),
            outs=Layout.original(outputs),
            view=None,
            _runner=None,
            _parameters=Guarded(names, layer),
            _buffers=Guarded(names, layer),
        )

    @property
    def original(self) -> nn.Module:
        """The layer as it was before its first growth."""
        return self._modules["0"]

    @property
    def layer_type(self) -> LayerType:
        """The entry for the type of its blocks."""
        return known_layer_type(self.original)

    @property
    def ran(self) -> LayerRun | None:
        """How the last call was executed; None before the first."""
        return self._runner.ran if self._runner is not None else None

    def set_blocks(
        self, modules: Sequence[nn.Module], blocks: Sequence[Block], ins: Layout, outs: Layout
    ) -> None:
        """Replaces all modules but the original, their roles, and the layouts of the channels."""
        kept = {"0": self.original}
        kept.update(zip(map(str, range(1, len(modules))), modules[1:], strict=True))
        composition, own = Composition(tuple(kept.values()), tuple(blocks), ins, outs), None
        before = self._runner
        known = before is not None and before.view is None
        if before is not None and known and composition.learn_(before.composition):
            own = before.own.learn_(modules[len(before.modules) :])
        # A layer without values does not run yet; preparing it takes time in proportion to its
        # blocks, which is too long for each of the many edits of a journal.
        empty = any(tensor.is_meta for tensor in modules[-1].parameters())
        runner = None if empty else Runner(composition, None, own)
        # In one step, so that an interruption finds all of it or the old. The runner is made here,
        # since torch's compiler could not follow that in `forward`.
        self.__dict__.update(
            _modules=kept, blocks=composition.blocks, ins=ins, outs=outs, _runner=runner
        )
        drop_old_code_()

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output at its present size, or at that of the edit in `view`."""
        runner = self._runner
        same = runner is not None and runner.modules == (*self._modules.values(),)
        if runner is None or not same or runner.view != self.view:
            own = runner.own if runner is not None and same else None
            runner = self._runner = Runner(self.composition(), self.view, own)
        return runner.run(x, *args, **kwargs)

    def show_(self, view: int | None, undo: Undo) -> None:
        """Shows the layer as of an edit, until that is taken back.

        Prepared to run here, since torch's compiler could not follow that in `forward`; code that
        it has made for the present layer fits again afterwards.
        """
        before = self._runner
        shown = before.at(view, self.composition()) if before is not None else None
        undo.on_failure(partial(self._show_again_, self.view, before, shown))
        self.__dict__.update(view=view, _runner=shown)

    def _show_again_(self, view: int | None, before: Runner | None, shown: Runner | None) -> None:
        """Takes `show_` back; a runner that was made since then is made anew."""
        same = self._runner is shown or self._runner is before
        self.__dict__.update(view=view, _runner=before if same else None)

    def composition(self, view: int | None = None) -> Composition:
        """Its blocks and where their channels lie, now or after an edit."""
        runner, compiling = self._runner, torch.compiler.is_compiling()
        known = runner.composition.layer_type if runner is not None and compiling else None
        modules = (*self._modules.values(),)
        whole = runner.composition if runner is not None else None
        if compiling or whole is None or not whole.has(modules, self.blocks, self.ins, self.outs):
            whole = Composition(modules, self.blocks, self.ins, self.outs, known)
        return whole if view is None else whole.until(view)

    def _shown(self) -> Composition:
        """The blocks that are shown; prepares everything that the compiler could not follow."""
        runner = self._runner
        current = runner is not None and runner.modules == (*self._modules.values(),)
        if runner is not None and current and runner.view == self.view:
            return runner.composition
        return self.composition(self.view)

    def inert_children(self) -> Inert | None:
        """The blocks that growth added, if they are such that a run changes nothing in them."""
        known, runner = self.layer_type, self._runner
        kind = known.merging.block or type(self.original)
        if runner is None or known.kernel(self.original) is None or len(self) == 1:
            return None
        first, *added = self._modules.values()
        if not kind.__module__.startswith("torch.nn.modules.") or {*map(type, added)} != {kind}:
            return None
        return Inert(first, added, frozenset(vars(runner.composition.template)))

    def sizes(self, view: int | None = None) -> tuple[int, int]:
        """The numbers of input and output channels, now or after an edit."""
        if view is None:
            return self.ins.length, self.outs.length
        return self.ins.until(view).length, self.outs.until(view).length

    def plain(self, view: int | None = None) -> nn.Module:
        """A stock layer that computes the same, with tensors of its own."""
        return self.composition(view).plain().train(self.training)

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        """The blocks, where there are several processes with storage of their own.

        `fully_shard` asks every module for its children before it takes their parameters, and it
        takes no parameter that is a part of a larger tensor.
        """
        if several_processes() and not is_managed(self.original):
            for block in self:
                make_dense_(block)
        return super().named_children()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SplitLayer:  # noqa: FBT001, FBT002
        """Moves or converts every block's tensors, and drops the assembled ones."""
        self._runner = None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._runner = Runner(self.composition(), self.view)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """The state of a copy, without the view, which belongs to a ``with`` block."""
        return {**self.__dict__, "view": None, "_runner": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Prepares a copy to run."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._runner = Runner(self.composition(), None)

    # -- in the place of the plain layer ----------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        """Answers for a stock layer of the present size.

        Raises:
            AttributeError: If a stock layer has no such attribute.
        """
        own = self.__dict__
        for store in ("_parameters", "_buffers", "_modules"):
            if name in own.get(store, {}).keys():  # noqa: SIM118 - `in` on a guarded dict raises
                return own[store][name]
        if "blocks" not in own or name.startswith("__"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return answer(self, self._shown(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an attribute: one of a stock layer's on all blocks.

        Raises:
            UnsupportedLayerError: If it is a tensor or a width, or another layer for a block.
        """
        if name[:1] == "_" or name in _OWN or "blocks" not in self.__dict__:
            super().__setattr__(name, value)
        elif name in self._modules:
            if type(value) is type(self._modules[name]):  # the next growth checks it
                super().__setattr__(name, value)
                return
            refuse(self.composition(), f"block {name} of the layer cannot be replaced")
        elif set_on_blocks(self._shown(), name, value):
            self._runner = None
        else:
            super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        """Deletes an attribute of its own.

        Raises:
            UnsupportedLayerError: If it is one of the stock layer's tensors, or a block.
        """
        if name in self._modules or name in tensor_names(self.composition()):
            refuse(self.composition(), f"the layer's `{name}` cannot be deleted")
        super().__delattr__(name)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Adds a parameter that a stock layer does not have.

        Raises:
            UnsupportedLayerError: If a stock layer has it, or it is one of those.
        """
        if isinstance(param, LiveTensor) or name in tensor_names(self.composition()):
            refuse(self.composition(), f"the layer's `{name}` cannot be registered")
        super().register_parameter(name, param)

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:  # noqa: FBT001, FBT002
        """Adds a buffer that a stock layer does not have.

        Raises:
            UnsupportedLayerError: If a stock layer has it.
        """
        if name in tensor_names(self.composition()):
            refuse(self.composition(), f"the layer's `{name}` cannot be registered")
        super().register_buffer(name, tensor, persistent)

    def __prepare_scriptable__(self) -> nn.Module:
        """Refuses to be scripted: torch would put the result into the model itself.

        Raises:
            UnsupportedLayerError: Always.
        """
        refuse(self.composition(), "the layer cannot be scripted")


_OWN = {"training", "blocks", "ins", "outs", "view"}
"""The attributes that are not the stock layer's."""


def stock(module: nn.Module) -> nn.Module:
    """The stock layer that stands for a module: a split layer's original, or the module."""
    return module.original if isinstance(module, SplitLayer) else module
