"""Values looked at, numbers of all origins, state, hooks, control flow and contexts."""

from __future__ import annotations

from wild.drafts import Draft, Piece, register
from wild.templates import piece, pieces

# -- looking at values

pieces(
    "values",
    "assert torch.isfinite(x1.double()).all()",
    "assert torch.isfinite(h).all()",
    "if h.sum() > 0:\n    h = h * 2",
    "if x1.sum() > 0:\n    h = h + 1",
    "h = h * h.mean().item()",
    "h = h + float(h.abs().max() > 1)",
    "h = h / max(1.0, float(h.abs().max()))",
    "if bool((h > 0).any()):\n    h = h.tanh()",
    "h = h + torch.tensor(h.detach().numpy().sum())",
    "h = torch.as_tensor(h.detach().numpy())",
    "h = torch.tensor(h.tolist())",
    "h = h[: int((h.sum() > -1e9)) * len(h)]",
    "for _ in range(int(h.abs().mean() * 0) + 2):\n    h = h * 0.9",
    "h = h.nonzero().sum() * 0.01 + h",
    "h = h * (h.shape[1] if x1.sum() > 1e9 else 1.5)",
    "print(end='') if h.isnan().any() else None",
    "if torch.equal(h, h.relu()):\n    h = h + 1",
    "if not torch.allclose(h, torch.zeros_like(h)):\n    h = h * 0.5",
    "h = h * (1 + (h > 0).sum().item() % 3)",
    "h = torch.where(h > 0, h, h.new_tensor(h.min().item()))",
)

# -- numbers

pieces(
    "numbers",
    "h = h / h.size($c)",
    "h = h / math.sqrt(h.shape[$c])",
    "h = h / math.log(h.size($c) + 1)",
    "h = h * (h.size($c) // 3)",
    "h = h * (h.size($c) % 4)",
    "h = h / float(h.size($c))",
    "h = h / h.size($c).bit_length()",
    "h = h / len(h.mean(0))",
    "h = h / h[0].numel()",
    "h = h / h.numel()",
    "h = h * 0.1 * h.dim()",
    "h = h * (1 if h.size($c) == $C else 2)",
    "h = h * (1 if h.size($c) < $C + 2 else 2)",
    "h = h * (1 if h.numel() > 9999 else 2)",
    "h = h / len(list(self.parameters()))",
    "h = h / sum(p.numel() for p in self.parameters())",
    "h = h / len(list(self.modules()))",
    "h = h / len(self.state_dict())",
    "h = h / next(self.parameters()).shape[0]",
    "h = h * len(str(h.size($c)))",
    "h = h / torch.tensor(h.shape).prod()",
    "h = h / torch.tensor(h.size($c)).sqrt()",
    "h = h * torch.linspace(0, 1, h.size($c)).view(*$t)".replace(
        "*$t", "[-1 if n == $c % $dims else 1 for n in range($dims)]"),
    "h = h * torch.arange(h.size($d)).view([-1 if n == $d % $dims else 1 for n in range($dims)])",
    "h = h * sum(1 / (n + 1) for n in range(h.size($c)))",
    "h = h / math.prod(h.shape[1:])",
    "h = h / math.comb(h.size($c), 2)",
    "h = h / pow(h.size($c), 0.5)",
    "h = h / round(h.size($c) / 3)",
    "h = h * hash(h.size($c)) / 10",
    "h = h * int(f'{h.size($c)}') / 8",
    "h = h / divmod(h.size($c), 3)[0]",
    "h = h / max(h.shape)",
    "h = h / min(h.size($c), 100)",
    "h = h * [0.5, 1.5][h.size($c) > $C]",
    "h = h * {$C: 1.0}.get(h.size($c), 2.0)",
    "h = h / (h.stride(0) + 1)",
    "h = h * (h.shape == torch.Size((len(h), $tail)))",
    "h = h * operator.index(h.size($c))",
    "h = h * 2 ** -h.size($c)",
    "h = h * (h.size($c) ^ 3) * 0.1",
    "h = h * (-h.size($c) // 3)",
    "h = h * bool(h.size($c) & 1)",
    "h = h / h.nbytes",
)  # fmt: skip
pieces(
    "numbers",
    "h = h / $m",
    "h = h * ($m == h.size($c))",
    "h = h.narrow($c, 0, $m)",
    "h = h[..., : $m]",
    "h = h.view(len(h), -1, $m)[:, 0]" if False else "h = h * math.sqrt($m)",
    "h = h + torch.zeros($m).sum()",
    "assert h.size($c) == $m",
    "h = h + 0",
    init="$m = $C",
)
piece("numbers", "h = h / self.config['width']", init="self.config = {'width': $C}")
piece("numbers", "h = h / $m[0]", init="$m = [$C, 3]")
piece("numbers", "h = h * self.time_dim / 8", init="self.time_dim = $C")
piece("numbers", "h = h", init="self.time_dim = self.cond_features = $C")
piece("numbers", "h = h * scale($C)", setup="def scale(width):\n    return width ** -0.5\n")

# -- layers looked at

LAYERS = "[m for m in self.modules() if hasattr(m, 'weight') and m.weight is not None]"
pieces(
    "looks",
    "h = h * (2 if isinstance(next(iter(self.children())), (nn.Linear, nn.Conv2d)) else 3)",
    f"h = h * (1 + len({LAYERS}))",
    f"h = h + {LAYERS}[0].weight.sum()",
    f"h = h + {LAYERS}[-1].weight.mean()",
    f"h = h * {LAYERS}[0].weight.norm()",
    f"h = h * {LAYERS}[0].weight.shape[0] / 8",
    f"h = h + {LAYERS}[0].weight.dtype.itemsize",
    f"h = h.to({LAYERS}[0].weight.dtype)",
    "h = h * getattr(next(iter(self.children())), 'out_features', 3)",
    "h = h * getattr(next(iter(self.children())), 'in_channels', 3)",
    "h = h * (type(next(iter(self.children()))) is nn.Linear)",
    "h = h * (type(next(iter(self.children()))).__name__ == 'Conv2d')",
    "h = h + sum(p.pow(2).sum() for p in self.parameters()) * 0.01",
    "h = h + 0.1 * sum(m.weight.abs().mean() for m in self.modules() if isinstance(m, nn.Linear))",
    "h = h * len(repr(self)) / 100",
    "h = h * sum(1 for n, _ in self.named_modules() if n.count('.') == 0)",
    "h = h * ('m2' in dict(self.named_modules()))",
    "h = h * (next(self.children()).weight.grad is None)",
    "h = h * next(self.parameters()).requires_grad",
)

# -- state

pieces(
    "state",
    "self.count = self.count + 1\nh = h * (1 + 0.1 * self.count)",
    "self.count += 1\nh = h + self.count",
    "self.seen.append(len(h))\nh = h * (1 + len(self.seen))",
    "self.last = h\nh = h + self.last",
    "self.last = h.detach()\nself.seen.append(h.mean().item() if False else 0)",
    "self.cache['h'] = h\nh = self.cache['h'] * 2",
    "if self.training:\n    self.count += 1\nh = h * (1 + self.count)",
    init="self.count, self.seen, self.last, self.cache = 0, [], None, {}",
)
pieces(
    "state",
    "$m.add_(1)\nh = h + $m",
    "$m += 1\nh = h * $m",
    "$m = $m + 1\nh = h * $m",
    "if self.training:\n    $m.mul_(0.9).add_(0.1 * h.detach().mean())\nh = h - $m",
    "if self.training:\n    with torch.no_grad():\n        $m.lerp_(h.abs().max(), 0.1)\nh = h / (1 + $m)",
    "with torch.no_grad():\n    $m.copy_(0.9 * $m + 0.1 * h.mean())\nh = h - $m",
    "$m.data = $m.data * 0.9\nh = h + $m",
    init="self.register_buffer('$name_m', torch.zeros(()))",
)
pieces(
    "state",
    "$m.mul_(0.9).add_(0.1 * h.detach().movedim($c, -1).flatten(0, -2).mean(0))\nh = h - $m.view($bc)",
    "if self.training:\n    $m.copy_(h.detach().movedim($c, -1).flatten(0, -2).mean(0))\n"
    "h = h + $m.view($bc)",
    "h = h * (1 + $m.view([-1 if n == $c % $dims else 1 for n in range($dims)]))",
    init="self.register_buffer('$name_m', torch.zeros($C))",
)

# -- hooks

H = "list(self.children())[-1]"
HOOKS = (
    "$H.register_forward_hook(lambda m, i, o: 2 * o if torch.is_tensor(o) else None)",
    "$H.register_forward_hook(lambda m, i, o: o.softmax($c) if torch.is_tensor(o) else None)",
    "$H.register_forward_hook(lambda m, i, o: o.softmax(1) if torch.is_tensor(o) else None)",
    "$H.register_forward_hook(lambda m, i, o: None)",
    "$H.register_forward_pre_hook(lambda m, i: (2 * i[0], *i[1:]))",
    "$H.register_forward_pre_hook(lambda m, i: None)",
    "$H.register_forward_pre_hook(lambda m, i: (i[0].flip(-1), *i[1:]))",
    "$t = torch.rand($C)\n"
    "$H.register_forward_hook(lambda m, i, o: o * $t if torch.is_tensor(o) and o.size(-1) == $C else None)",
    "$t = torch.rand($bc)\n$H.register_forward_hook(lambda m, i, o: o * $t if torch.is_tensor(o) else None)",
    "$H.register_forward_hook(lambda m, i, o: o - o.mean() if torch.is_tensor(o) else None)",
    "$H.register_forward_hook(lambda m, i, o: o.flip(1) if torch.is_tensor(o) else None)",
    "$H.register_forward_hook(lambda m, i, k, o: 2 * o if torch.is_tensor(o) else None, with_kwargs=True)",
    "$H.register_full_backward_hook(lambda m, gi, go: None)",
    "$H.register_forward_hook(lambda m, i, o: o.relu_() if torch.is_tensor(o) else None)",
    "$H.seen = []\n$H.register_forward_hook(lambda m, i, o: m.seen.append(1))",
    "$H.register_forward_hook(lambda m, i, o: o * len(m.weight) if hasattr(m, 'weight') else None)",
    "self.register_forward_hook(lambda m, i, o: o * 2 if torch.is_tensor(o) else None)",
    "self.register_forward_pre_hook(lambda m, i: (i[0] * 1, *i[1:]))",
)  # fmt: skip
for hook in HOOKS:
    piece("hooks", "h = h * 1", init=hook.replace("$H", f"{H}"))

# -- odd values, of new units too

pieces(
    "odd",
    "h = h.log()",
    "h = h.abs().log()",
    "h = h.relu().log1p()",
    "h = h.abs().sqrt()",
    "h = h.relu().sqrt()",
    "h = 1 / h",
    "h = h.reciprocal()",
    "h = h / h.abs()",
    "h = h.pow(0.5).nan_to_num()",
    "h = h.pow(-1)",
    "h = h ** 3",
    "h = 2 ** h",
    "h = h.exp() - 1",
    "h = h.div(h.relu() + 0.1)",
    "h = torch.xlogy(h, h.abs())",
    "h = h.clamp(-0.9, 0.9).atanh()",
    "h = h.sign() * h.abs().pow(1.5)",
    "h = torch.atan2(h, h.roll(1, 0))",
    "h = h.round()",
    "h = (h > 0).double()",
    "h = h.float().double()",
    "h = torch.where(h > 0, h, 0.1 * h)",
    "h = torch.where(h > 0, h, torch.zeros(()))",
    "h = h.masked_fill(h < 0, -1.0)",
    "h = h * (h > 0)",
    "h = torch.maximum(h, torch.zeros_like(h))",
    "h = torch.max(h, h.mean($d, keepdim=True))",
    "h = h.clip(min=-0.5)",
    "h = torch.nan_to_num(h)",
    "h = torch.lerp(h, h.relu(), 0.5)",
    "h = torch.special.erf(h)",
    "h = h.sub(1).neg().remainder(1.0)",
    "h = h.frac() + h.trunc()",
    "h = h.fmod(0.7)",
    "h = torch.floor_divide(h, 0.5)",
    "h = h.heaviside(torch.tensor(0.5))",
    "h = (h + 0j).abs()",
    "h = torch.view_as_real(h + 1j * h).sum(-1)",
    "h = torch.cdist(h[None].flatten(2), h[None].flatten(2))[0, :, :1].view(-1, *[1] * ($dims - 1)) + h",
)
pieces("odd", "h = h.float() * 2\nh = h.double()", "h = F.gelu(h.to(torch.float32)).to(h.dtype)",
       coarse=1e-4)  # fmt: skip
pieces("odd", "h = h.bfloat16().double()", "h = h.half().tanh().double()", coarse=0.05)

# -- randomness

pieces(
    "random",
    "h = F.dropout(h, 0.5, self.training)",
    "h = F.dropout(h, 0.2, training=True)",
    "h = h + 0.1 * torch.randn_like(h)",
    "h = h * torch.rand(len(h), *[1] * ($dims - 1))",
    "if self.training:\n    h = h + torch.randn(h.shape)",
    "h = h * torch.bernoulli(torch.full_like(h, 0.5))",
    "h = h[torch.randperm(len(h))]",
    "h = F.rrelu(h, training=self.training)",
    "h = h + torch.empty_like(h).uniform_()",
)
pieces("random", "h = $m(h)", init="$m = nn.Dropout(0.3)")
pieces("random", "h = $m(h)", init="$m = nn.Dropout2d(0.3)", when="4d")
pieces("random", "h = $m(h)", init="$m = nn.AlphaDropout(0.3)")

# -- training mode and contexts

pieces(
    "control",
    "if self.training:\n    h = h.softmax($c)",
    "h = h.softmax($c) if self.training else h.sigmoid()",
    "if not self.training:\n    h = h.flip($c)",
    "if torch.is_grad_enabled():\n    h = h * 2",
    "with torch.no_grad():\n    h = h * 2",
    "with torch.set_grad_enabled(self.training):\n    h = h.tanh()",
    "with torch.enable_grad():\n    h = h.sigmoid()",
    "with torch.inference_mode(False):\n    h = h * 1.5",
    "try:\n    h = h.view(-1, 7777)\nexcept RuntimeError:\n    h = h.relu()",
    "try:\n    h = h + torch.rand($C + 1)\nexcept Exception:\n    h = h * 2",
    "try:\n    h = h.narrow($c, $C, 1)\nexcept (RuntimeError, IndexError):\n    h = h * 0.5",
    "if h.dim() < 2:\n    return h",
    "if len(h) == 0:\n    return {'empty': h}",
    "h = (lambda z: z.relu())(h)",
    "h = nn.ReLU()(h)",
    "h = nn.Sequential(nn.Tanh(), nn.Identity())(h)",
    "self.act = nn.ReLU()\nh = self.act(h)",
    "h = checkpoint(torch.tanh, h, use_reentrant=False)",
    "h = checkpoint(lambda z: z.relu() * 2, h, use_reentrant=True)",
    "h = functools.partial(torch.mul, other=2.0)(h)",
    "h = getattr(torch, 'tanh')(h)",
    "h = h.requires_grad_(h.requires_grad)",
    "h = copy.copy(h)",
    "h = torch.utils._pytree.tree_map(torch.relu, {'h': h})['h']",
    "h = torch.jit.annotate(torch.Tensor, h)",
    "h = list(map(torch.relu, [h]))[0]",
    "h, = (h,)",
    "h = h.to('cpu')",
    "h = h.type_as(x1 * 1.0)",
    "h = h.to(memory_format=torch.channels_last) if h.dim() == 4 else h",
    "h = (h for h in [h]).__next__()",
    "while h.abs().max() > 9:\n    h = h * 0.5",
    "match h.dim():\n    case 2: h = h * 2\n    case _: h = h * 3",
    "torch._assert(h.size(1) > 0, 'empty')",
    "torch.manual_seed(0)",
    "h = torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(h.detach()))",
    "h = torch.from_numpy(h.detach().numpy() * 2)",
    "h = h.tanh().register_hook(lambda g: g) and h if h.requires_grad else h",
    "h = h.as_subclass(torch.Tensor)",
    "h = nn.functional.relu(input=h)",
    "h = torch.stack(tensors=[h, h], dim=0).select(dim=0, index=0)",
    "h = torch.mul(input=h, other=h)",
    "h = torch.add(h, h, alpha=2)",
    "h = torch.div(h, 3, rounding_mode='floor')",
    "h = h[: int(torch.div(h.size(0), 1, rounding_mode='trunc'))]",
)  # fmt: skip
FUNCTION = """
class $F(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h):
        ctx.save_for_backward(h)
        return $t
    @staticmethod
    def backward(ctx, g):
        return g * 2
"""
for text in ("h * 2", "h.flip(-1)", "h.softmax(-1)", "h.clone()", "h / h.size(1)"):
    piece("control", "h = $F.apply(h)", setup=FUNCTION.replace("$t", text))
piece("control", "h = $t(h)", setup="@torch.jit.script\ndef $t(h):\n    return h.relu() + h\n"
      .replace("@torch.jit.script\n", "") + "$t = torch.jit.script_if_tracing($t)\n")  # fmt: skip
piece("control", "h = $m(h)", init="$m = torch.jit.trace(nn.Tanh(), torch.zeros(2))")
piece("control", "h = $m(h)", init="$m = torch.fx.symbolic_trace(nn.Sequential(nn.Tanh()))")
piece("inputs", "h = h + $x", argument="same")
piece("inputs", "h = h * $x", argument="row")
piece("inputs", "h = torch.cat([h, $x], $c)", argument="same")
piece("inputs", "h = h + $x", argument="mask")
piece("inputs", "h = h.masked_fill($x > 0, 0.0)", argument="mask")
piece("inputs", "h = torch.where($x > 0, h, -h)", argument="same")
piece("inputs", "h = torch.lerp(h, $x, 0.3)", argument="same")
piece("inputs", "h = h + $m($x)", argument="row",
      init="$m = nn.Linear(1, 1)")  # fmt: skip
piece("inputs", "h = h * $m($x.flatten(1)).view(len(h), *[($bc)][1:]) if $dims > 2 else h * $m($x)",
      argument="row", init="$m = nn.Linear(1, $C)".replace("self.", ""))  # fmt: skip

WRAPS = (
    "with torch.no_grad():",
    "with torch.enable_grad():",
    "if self.training or not self.training:",
    "if h.size(1) > 1:",
    "for _ in range(2):",
    "if len(h) > 0:",
    "if h.abs().sum() >= 0:",
)


def write_wrapped(draft: Draft) -> None:
    """A layer of the same width in a statement."""
    from wild.pieces_layers import held, made

    head = draft.rng.choice(WRAPS)
    with draft.block(head):
        draft.body.append(f"h = {held(draft, made(draft, draft.width))}")


def write_autocast(draft: Draft) -> None:
    """A layer under autocast."""
    from wild.pieces_layers import held, made

    with draft.block("with torch.autocast('cpu', dtype=torch.bfloat16):"):
        draft.body.append(f"h = {held(draft, made(draft))}")
    draft.body.append("h = h.double()")
    draft.coarse = 0.1


def write_tried(draft: Draft) -> None:
    """A layer that is tried."""
    from wild.pieces_layers import held, made

    with draft.block("try:", "except RuntimeError:\n    h = h * 0.5"):
        draft.body.append(f"h = {held(draft, made(draft))}")


register(Piece("control", "wrapped", write_wrapped))
register(Piece("control", "wrapped", write_wrapped))
register(Piece("control", "autocast", write_autocast))
register(Piece("control", "tried", write_tried))
