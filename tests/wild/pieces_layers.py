"""Layers that can grow, and the many ways in which a forward gets them."""

from __future__ import annotations

from wild.drafts import Draft, Piece, register
from wild.templates import piece, pieces

ACTIVATIONS = (
    "h = h.relu()",
    "h = F.relu(h)",
    "h = torch.tanh(h)",
    "h = F.gelu(h)",
    "h = F.silu(h)",
    "h = F.leaky_relu(h, 0.1)",
    "h = h.sigmoid()",
    "h = F.relu(h, inplace=True)",
    "h = F.hardswish(h)",
    "h = F.softplus(h)",
    "h = F.elu(h)",
    "h = torch.sin(h)",
)
CONVS = {3: "Conv1d", 4: "Conv2d", 5: "Conv3d"}


def made(draft: Draft, outs: int | None = None) -> str:
    """The text that makes a layer which takes ``h`` and has its channels where ``h`` has them."""
    rng, ins = draft.rng, draft.width
    outs = rng.choice([4, 5, 6, 8]) if outs is None else outs
    bias = ", bias=False" if rng.random() < 0.2 else ""
    if draft.channel == draft.dims - 1:
        return f"nn.Linear({ins}, {outs}{bias})"
    if draft.channel != 1 or draft.dims not in CONVS:
        raise LookupError("no layer for these axes")
    options = [bias]
    kernel = rng.choice([1, 3]) if min(draft.shape[2:]) > 1 else 1
    if kernel == 3:
        options.append(rng.choice([", padding=1", ", padding=2, dilation=2", ", padding='same'"]))
        options.append(rng.choice(["", "", "", ", padding_mode='circular'"]))
    if rng.random() < 0.15 and "padding_mode" not in options[-1]:
        return f"nn.ConvTranspose{draft.dims - 2}d({ins}, {outs}, 1{bias})"
    groups = [n for n in (2, 3, 4) if ins % n == 0 and outs % n == 0]
    if groups and rng.random() < 0.2:
        options.append(f", groups={rng.choice(groups)}")
    return f"nn.{CONVS[draft.dims]}({ins}, {outs}, {kernel}{''.join(options)})"


def held(draft: Draft, text: str) -> str:
    """Puts a module somewhere, and returns the text that calls it on ``h``."""
    ways = [_plain] * 12 + list(_WAYS)
    return draft.rng.choice(ways)(draft, f"self.{draft.fresh('m')}", text)


def _plain(d: Draft, m: str, text: str) -> str:
    d.init.append(f"{m} = {text}")
    return f"{m}(h)"


def _in_list(d: Draft, m: str, text: str) -> str:
    d.init += [f"{m} = {text}", f"{m}_steps = [{m}]"]
    return f"{m}_steps[0](h)"


def _in_tuple(d: Draft, m: str, text: str) -> str:
    d.init += [f"{m} = {text}", f"{m}_pair = ('layer', ({m},))"]
    return f"{m}_pair[1][0](h)"


def _in_dict(d: Draft, m: str, text: str) -> str:
    d.init += [f"{m} = {text}", f"{m}_by_name = {{'layer': {m}}}"]
    return f"{m}_by_name['layer'](h)"


def _in_closure(d: Draft, m: str, text: str) -> str:
    d.init += [f"{m} = layer = {text}", f"{m}_call = lambda h, layer=layer: layer(h)"]
    return f"{m}_call(h)"


def _in_cell(d: Draft, m: str, text: str) -> str:
    name = d.fresh("closing")
    d.add(
        d.setup, f"def {name}(layer):\n    def call(h):\n        return layer(h)\n    return call"
    )
    d.init += [f"{m} = {text}", f"{m}_call = {name}({m})"]
    return f"{m}_call(h)"


def _in_partial(d: Draft, m: str, text: str) -> str:
    d.init += [f"{m} = {text}", f"{m}_call = functools.partial({m})"]
    return f"{m}_call(h)"


def _as_method(d: Draft, m: str, text: str) -> str:
    d.init += [f"{m} = {text}", f"{m}_call = {m}.forward"]
    return f"{m}_call(h)"


def _by_forward(d: Draft, m: str, text: str) -> str:
    d.init.append(f"{m} = {text}")
    return f"{m}.forward(h)"


def _in_module_list(d: Draft, m: str, text: str) -> str:
    d.init.append(f"{m} = nn.ModuleList([nn.Identity(), {text}])")
    return d.rng.choice(
        [f"{m}[1](h)", f"functools.reduce(lambda h, layer: layer(h), {m}, h)", f"list({m})[-1](h)"]
    )


def _in_module_dict(d: Draft, m: str, text: str) -> str:
    d.init.append(f"{m} = nn.ModuleDict({{'layer': {text}}})")
    return f"{m}['layer'](h)"


def _by_name(d: Draft, m: str, text: str) -> str:
    d.init.append(f"{m} = {text}")
    name = m.removeprefix("self.")
    return d.rng.choice(
        [f"getattr(self, {name!r})(h)", f"self.get_submodule({name!r})(h)",
         f"dict(self.named_children())[{name!r}](h)", f"self._modules[{name!r}](h)"]
    )  # fmt: skip


def _in_sequential(d: Draft, m: str, text: str) -> str:
    d.init.append(f"{m} = nn.Sequential(nn.Sequential({text}), nn.Tanh())")
    return f"{m}(h)"


def _functional(d: Draft, m: str, text: str) -> str:
    d.init.append(f"{m} = {text}")
    if "nn.Linear" not in text:
        return f"{m}._conv_forward(h, {m}.weight, {m}.bias)" if "nn.Conv2d" in text else f"{m}(h)"
    return d.rng.choice(
        [f"F.linear(h, {m}.weight, {m}.bias)", f"F.linear(h, {m}.weight * 1.0, {m}.bias)",
         f"h @ {m}.weight.t()", f"({m}(h) + 0 * {m}.weight.sum())"]
    )  # fmt: skip


def _own_parameters(d: Draft, m: str, text: str) -> str:
    if "nn.Linear" not in text:
        return _plain(d, m, text)
    d.init += [f"layer = {text}", f"{m} = nn.Parameter(layer.weight.detach().clone())"]
    return f"F.linear(h, {m})"


def _subclassed(d: Draft, m: str, text: str) -> str:
    name, (base, _, rest) = d.fresh("Own"), text.partition("(")
    line = d.rng.choice(["return super().forward(x)", "return 2 * super().forward(x)",
                         "return super().forward(x).relu()"])  # fmt: skip
    d.add(d.setup, f"class {name}({base}):\n    def forward(self, x):\n        {line}\n")
    d.init.append(f"{m} = {name}({rest}")
    return f"{m}(h)"


def _block(d: Draft, m: str, text: str) -> str:
    name = d.fresh("Block")
    line = d.rng.choice(
        ["return self.layer(x)", "return self.layer(x).relu()", "return (self.layer(x),)[0]",
         "return self.act(self.layer(x))", "return checkpoint(self.layer, x, use_reentrant=False)",
         "x = self.layer(x); x += 1; return x"]
    )  # fmt: skip
    d.add(d.setup, f"class {name}(nn.Module):\n    def __init__(self):\n"
          f"        super().__init__()\n        self.layer, self.act = {text}, nn.ReLU()\n"
          f"    def forward(self, x):\n        {line}\n")  # fmt: skip
    d.init.append(f"{m} = {name}()")
    return f"{m}(h)"


def _parametrised(d: Draft, m: str, text: str) -> str:
    d.init.append(f"{m} = {text}")
    what = d.rng.choice(["weight", "spectral", "custom", "orthogonal"])
    if what == "custom":
        name = d.fresh("Twice")
        line = d.rng.choice(["return 2 * w", "return w - w.mean(0, keepdim=True)",
                             "return w / w.norm()", "return w.softmax(0)"])  # fmt: skip
        d.add(d.setup, f"class {name}(nn.Module):\n    def forward(self, w):\n        {line}\n")
        d.init.append(f"nn.utils.parametrize.register_parametrization({m}, 'weight', {name}())")
    elif what == "weight" and d.rng.random() < 0.3:
        d.init.append(f"nn.utils.weight_norm({m})")
    elif what == "spectral" and d.rng.random() < 0.3:
        d.init.append(f"nn.utils.spectral_norm({m})")
    else:
        ending = "" if what == "orthogonal" else "_norm"
        d.init.append(f"nn.utils.parametrizations.{what}{ending}({m})")
    return f"{m}(h)"


def _twice(d: Draft, m: str, text: str) -> str:
    d.init.append(f"{m} = {text}")
    return d.rng.choice([f"({m}(h) + {m}(h * 0.5))", f"torch.maximum({m}(h), {m}(-h))"])


def _tied(d: Draft, m: str, text: str) -> str:
    d.init += [f"{m} = {text}", f"{m}_twin = {text}"]
    d.init.append(d.rng.choice([f"{m}_twin.weight = {m}.weight", f"{m}_twin = {m}"]))
    return f"({m}(h) + {m}_twin(h.abs()))"


def _through_apply(d: Draft, m: str, text: str) -> str:
    name = d.fresh("apply")
    d.add(d.setup, f"def {name}(module, x):\n    return module(x)\n")
    d.init.append(f"{m} = {text}")
    return f"{name}({m}, h)"


_WAYS = (
    _in_list, _in_tuple, _in_dict, _in_closure, _in_cell, _in_partial, _as_method, _by_forward,
    _in_module_list, _in_module_dict, _by_name, _in_sequential, _functional, _own_parameters,
    _subclassed, _block, _parametrised, _twice, _tied, _through_apply,
)  # fmt: skip


def write_layer(draft: Draft) -> None:
    """A layer, and mostly an activation behind it."""
    draft.body.append(f"h = {held(draft, made(draft))}")
    if draft.rng.random() < 0.7:
        draft.body.append(draft.rng.choice(ACTIVATIONS))


def write_residual(draft: Draft) -> None:
    """A layer that is added onto its input."""
    call = held(draft, made(draft, draft.width))
    draft.body.append(draft.rng.choice([f"h = h + {call}", f"h = torch.add({call}, h, alpha=0.5)"]))


def write_depthwise(draft: Draft) -> None:
    """A depthwise convolution."""
    kind = CONVS[draft.dims]
    text = f"nn.{kind}({draft.width}, {draft.width}, 1, groups={draft.width})"
    draft.body.append(f"h = {held(draft, text)}")


def write_cat(draft: Draft) -> None:
    """Two layers next to each other."""
    one, other = held(draft, made(draft)), held(draft, made(draft))
    c = draft.spelled(draft.channel)
    spelled = draft.rng.choice(
        [f"torch.cat([{one}, {other}], {c})", f"torch.cat(({one}, {other}), dim={c})",
         f"torch.cat([{one}, {other}], axis={c})", f"torch.concat([{one}, {other}], {c})",
         f"torch.cat(tensors=[{one}, {other}], dim={c})"]
    )  # fmt: skip
    draft.body.append(f"h = {spelled}")


register(Piece("layers", "layer", write_layer))
register(Piece("layers", "layer", write_layer))
register(Piece("layers", "layer", write_layer))
register(Piece("layers", "residual", write_residual))
register(Piece("layers", "depthwise", write_depthwise, "ch1 3d|4d|5d"))
register(Piece("layers", "cat", write_cat))
pieces("activations", *ACTIVATIONS)
piece("activations", "h = $m(h)", init="$m = nn.PReLU($C)", when="2d|ch1")
piece("activations", "h = $m(h)", init="$m = nn.PReLU()")
piece("activations", "h = F.glu(h, $c)", when="even")
piece("activations", "$t, $u = h.chunk(2, $c)\nh = $t * $u.sigmoid()", when="even")
piece("activations", "h = F.prelu(h, $m)", init="$m = nn.Parameter(torch.rand($C))", when="2d|ch1")
piece("activations", "h = $m(h)", init="$m = nn.Softmax($c)")
piece("activations", "h = $m(h)", init="$m = nn.Softmax($s)", when="space")
piece("activations", "h = F.crelu(h) if False else torch.cat((h.relu(), (-h).relu()), $c)")
