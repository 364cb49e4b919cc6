"""Ops of torch's own list, with the arguments of its own tests."""

from __future__ import annotations

from wild.drafts import Draft, Piece, register
from wild.extras import op_list

LEFT_OUT = ("empty", "_like", "nn.functional.dropout", "nn.functional.alpha_dropout", "bernoulli",
            "normal", "randn", "rand", "multinomial", "exponential", "cauchy", "geometric",
            "log_normal", "uniform", "rrelu", "feature_alpha", "resize_", "jiterator", "to_sparse",
            "sparse.", "new_", "nn.functional.fractional", "as_strided", "native_batch_norm",
            "batch_norm_with", "lu_unpack", "lu_solve", "ormqr", "householder", "segment_reduce",
            "embedding_bag", "max_unpool", "ops.aten")  # fmt: skip
"""Random ones, those that read memory which nobody wrote, those that give no dense tensor, and those
that trust sizes and indices of arguments, and write where they must not."""


def write_op(draft: Draft) -> None:
    """An op between a layer and its reader."""
    ops = [op for op in op_list() if not any(word in op.name for word in LEFT_OUT)]
    if not ops:
        raise LookupError("this torch has no such list")
    op = draft.rng.choice(ops)
    how = draft.rng.choice(["function", "function", "method"])
    index = draft.rng.randrange(8)
    name = draft.fresh("op")
    draft.setup.append(f"{name} = opinfo({op.name!r}, {op.variant_test_name!r}, {index}, {how!r})")
    draft.body.append(f"h = {name}(h)")


register(Piece("torch", "op", write_op))
