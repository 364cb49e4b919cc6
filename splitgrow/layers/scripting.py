"""What torch.jit.script cannot take, with the way out."""

from __future__ import annotations

from typing import NoReturn

from splitgrow.errors import UnsupportedLayerError


class Unscriptable:
    """A module whose forward is no TorchScript; torch would say so by an error of its parser."""

    def __prepare_scriptable__(self) -> NoReturn:
        """Refuses to be scripted.

        Raises:
            UnsupportedLayerError: Always.
        """
        raise UnsupportedLayerError(
            f"a {type(self).__name__} cannot be scripted: use torch.jit.trace or torch.export, or "
            f"script the graph that splitgrow.fuse makes of a growable model that holds it"
        )
