"""Values looked at, numbers of all origins, and layers asked about themselves."""

from __future__ import annotations

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
