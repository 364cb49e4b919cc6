"""State that forward moves, hooks, odd values, and randomness."""

from __future__ import annotations

from wild.templates import piece, pieces

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
