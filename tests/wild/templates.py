"""Pieces as text with places that are left open, such as ``h = h.flip($s)``."""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping

from wild.drafts import Draft, Piece, register


class _Places(Mapping[str, str]):
    """What stands for the open places of one piece; each is decided when it is first asked for."""

    def __init__(self, draft: Draft) -> None:
        self.draft, self.known = draft, dict[str, str]()

    def __getitem__(self, key: str) -> str:
        if key not in self.known:
            self.known[key] = self._made(key)
        return self.known[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.known)

    def __len__(self) -> int:
        return len(self.known)

    def _made(self, key: str) -> str:
        d, rng = self.draft, self.draft.rng
        if key in {"m", "n", "q"}:  # attributes of the module
            return f"self.{d.fresh('m')}"
        if key in {"t", "u", "v", "F"}:  # variables, functions and classes
            return d.fresh("Made" if key == "F" else key)
        if key.startswith("name_"):  # an attribute's name alone
            return self[key.removeprefix("name_")].removeprefix("self.")
        return str(getattr(self, f"_{key}")(d, rng))

    def _c(self, d, rng):  # the channel axis
        return d.spelled(d.channel)

    def _s(self, d, rng):  # another axis, not the batch
        self.known["s0"] = str(rng.choice(d.others()))
        return d.spelled(int(self["s0"]))

    def _S(self, d, rng):  # noqa: N802 - its size
        return d.shape[int(self["s"])]

    def _d(self, d, rng):  # any axis but the batch
        return d.spelled(rng.choice(range(1, d.dims)))

    def _a(self, d, rng):  # any axis
        return d.spelled(rng.choice(range(d.dims)))

    def _b(self, d, rng):  # the batch
        return d.spelled(0)

    def _C(self, d, rng):  # noqa: N802 - the width
        return d.width

    def _CS(self, d, rng):  # noqa: N802 - the width, in some spelling
        c = self["c"]
        return rng.choice([str(d.width), f"h.size({c})", f"h.shape[{c}]"])

    def _half(self, d, rng):
        return d.width // 2

    def _halfS(self, d, rng):  # noqa: N802 - half the width, in some spelling
        c = self["c"]
        whole = rng.choice([f"h.size({c})", f"h.shape[{c}]"])
        return rng.choice([str(d.width // 2), f"{whole} // 2", f"int({whole} / 2)"])

    def _g(self, d, rng):  # a number of groups
        return rng.choice([n for n in range(1, d.width + 1) if d.width % n == 0])

    def _per(self, d, rng):  # units in each of them
        return d.width // int(self["g"])

    def _W(self, d, rng):  # noqa: N802 - another width
        return rng.choice([4, 5, 6, 8])

    def _k(self, d, rng):
        return rng.choice([1, 2, 3])

    def _i(self, d, rng):  # a unit
        return rng.randrange(d.width)

    def _j(self, d, rng):
        return rng.randrange(d.width)

    def _f(self, d, rng):
        return round(rng.uniform(0.2, 1.8), 2)

    def _dims(self, d, rng):
        return d.dims

    def _tail(self, d, rng):  # the sizes without the batch
        return ", ".join(map(str, d.shape[1:]))

    def _bc(self, d, rng):  # the sizes of a vector over the channels
        return ", ".join(str(d.width if n == d.channel else 1) for n in range(d.dims))

    def _numel(self, d, rng):  # the number of values of a row
        total = 1
        for size in d.shape[1:]:
            total *= size
        return total

    def _flip(self, d, rng):  # the axes in another order, the batch first
        order = list(range(1, d.dims))
        rng.shuffle(order)
        self.known["perm"] = ", ".join(map(str, [0, *order]))
        back = [0, *(1 + order.index(n) for n in range(1, d.dims))]
        self.known["back"] = ", ".join(map(str, back))
        return ""

    def _perm(self, d, rng):
        self["flip"]
        return self.known["perm"]

    def _back(self, d, rng):
        self["flip"]
        return self.known["back"]


def piece(
    family: str,
    body: str,
    *,
    init: str = "",
    setup: str = "",
    methods: str = "",
    when: str = "",
    channel: int | None = None,
    coarse: float = 0.0,
    argument: str = "",
) -> None:
    """Registers a piece that is written as text.

    Args:
        family: Its family.
        body: What forward does.
        init: What ``__init__`` does.
        setup: What stands in front of the class.
        methods: What stands in the class.
        when: What must be true of ``h``.
        channel: Where the channels are afterwards, if not where they were; from the back if < 0.
        coarse: How far rounding goes.
        argument: "same" for an argument of forward of the sizes of ``h``, "row" for one number a
            row, "bool" for a mask of the other axes; it stands for ``$x``.
    """

    def write(draft: Draft) -> None:
        places = _Places(draft)
        if argument:
            places.known["x"] = _argument(draft, argument)
        for where, text in (
            (draft.setup, setup),
            (draft.init, init),
            (draft.methods, methods),
            (draft.body, body),
        ):
            if text:
                draft.add(where, string.Template(text).substitute(places))
        draft.coarse = max(draft.coarse, coarse)
        if channel is not None:
            draft.channel = channel  # from the back: the draft counts it when the shape is known

    register(Piece(family, " ; ".join(body.strip().split("\n"))[:60], write, when))


def _argument(draft: Draft, what: str) -> str:
    if what == "same":
        return draft.argument(draft.shape[1:])
    if what == "row":
        return draft.argument((1,) * (draft.dims - 1))
    sizes = tuple(1 if n == draft.channel else draft.shape[n] for n in range(1, draft.dims))
    return draft.argument(sizes)


def pieces(family: str, *bodies: str, **options: object) -> None:
    """Registers several pieces that differ in their body only."""
    for body in bodies:
        piece(family, body, **options)  # type: ignore[arg-type]
