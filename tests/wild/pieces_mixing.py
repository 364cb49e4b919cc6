"""Norms, softmax, sorting, reductions and products: ops that mix units, or seem to."""

from __future__ import annotations

from wild.templates import piece, pieces

# -- norms

piece("norms", "h = $m(h)", init="$m = nn.BatchNorm1d($C)", when="2d")
piece("norms", "h = $m(h)", init="$m = nn.BatchNorm1d($C, affine=False)", when="2d")
piece("norms", "h = $m(h)", init="$m = nn.BatchNorm1d($C)", when="3d ch1")
piece("norms", "h = $m(h)", init="$m = nn.BatchNorm2d($C)", when="4d ch1")
piece("norms", "h = $m(h)", init="$m = nn.BatchNorm2d($C, track_running_stats=False)",
      when="4d ch1")  # fmt: skip
piece("norms", "h = $m(h)", init="$m = nn.BatchNorm2d($C, momentum=None)", when="4d ch1")
piece("norms", "h = $m(h)", init="$m = nn.SyncBatchNorm($C).eval()", when="4d ch1")
piece("norms", "h = $m(h)", init="$m = nn.GroupNorm($g, $C)", when="ch1|2d")
piece("norms", "h = $m(h)", init="$m = nn.InstanceNorm2d($C, affine=True)", when="4d ch1")
piece("norms", "h = $m(h)", init="$m = nn.InstanceNorm1d($C)", when="3d ch1 wide")
piece("norms", "h = $m(h)", init="$m = nn.LayerNorm($C)", when="last")
piece("norms", "h = $m(h)", init="$m = nn.LayerNorm([$tail])")
piece("norms", "h = $m(h)", init="$m = nn.RMSNorm($C)", when="last")
piece("norms", "h = $m(h)", init="$m = nn.LayerNorm(h_size)" .replace("h_size", "$S"),
      when="space ch1 3d")  # fmt: skip
piece("norms", "h = $m(h.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)", init="$m = nn.LayerNorm($C)",
      when="4d ch1")  # fmt: skip
piece("norms", "h = $m(h.transpose(1, -1)).transpose(1, -1)", init="$m = nn.BatchNorm1d($C)",
      when="3d last")  # fmt: skip
piece(
    "norms", "h = $m(h.transpose(0, 1)).transpose(0, 1)", init="$m = nn.BatchNorm1d(3)", when="3d"
)
piece("norms", "h = h.permute(2, 1, 0)\nh = F.batch_norm(h, None, None, $m, $n, True)\n"
      "h = h.permute(2, 1, 0)", init="$m = nn.Parameter(torch.rand(h1))\n$n = nn.Parameter("
      "torch.rand(h1))".replace("h1", "$S"), when="3d last")  # fmt: skip
piece("norms", "h = h.transpose(0, 1)\nh = F.batch_norm(h, None, None, training=True)\n"
      "h = h.transpose(0, 1)")  # fmt: skip
pieces(
    "norms",
    "h = F.layer_norm(h, h.shape[-1:])",
    "h = F.layer_norm(h, (h.size(-1),))",
    "h = F.layer_norm(h, h.shape[1:])",
    "h = F.normalize(h, dim=$c)",
    "h = F.normalize(h, dim=0)",
    "h = F.normalize(h, dim=$d, p=1)",
    "h = h / h.norm(dim=$c, keepdim=True)",
    "h = h / (1 + h.norm(dim=0, keepdim=True))",
    "h = h / (1 + h.norm())",
    "h = (h - h.mean($c, keepdim=True)) / (h.std($c, keepdim=True) + 1)",
    "h = (h - h.mean($d, True)) / (h.var($d, keepdim=True) + 1).sqrt()",
    "h = h - h.mean()",
    "h = h - h.mean(dim=(0, $d), keepdim=True)",
    "h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-3)",
    "h = h / (h.amax($c, keepdim=True).abs() + 1)",
    "h = F.local_response_norm(h, 3) if h.dim() > 2 else h",
    "h = torch.renorm(h, 2, 0, 1.0)",
    "h = F.rms_norm(h, h.shape[-1:])",
)
pieces(
    "norms",
    "h = F.group_norm(h, $g)",
    "h = F.group_norm(h, $g, torch.full(($C,), 0.7))",
    "h = F.batch_norm(h, torch.zeros($CS), torch.ones($CS))",
    "h = F.batch_norm(h, None, None, training=True)",
    "h = F.batch_norm(h, h.flatten(1).mean(1)[:1].expand($CS), torch.ones($CS))",
    when="ch1|2d",
)
pieces("norms", "h = F.instance_norm(h)", "h = F.instance_norm(h, use_input_stats=True)",
       "h = F.layer_norm(h, h.shape[2:])", "h = F.instance_norm(h.transpose(0, 1)).transpose(0, 1)",
       when="ch1 wide")  # fmt: skip
piece("norms", "h = F.batch_norm(h, $m, $n, training=self.training)", when="ch1|2d",
      init="self.register_buffer('$name_m', torch.zeros($C))\n"
      "self.register_buffer('$name_n', torch.ones($C))")  # fmt: skip

# -- softmax, sorting, cumulating

pieces(
    "mixing",
    "h = h.softmax($c)",
    "h = h.softmax(0)",
    "h = F.softmax(h, dim=$d)",
    "h = torch.softmax(h, $a)",
    "h = F.log_softmax(h, $c)",
    "h = h.cumsum($c)",
    "h = torch.cumsum(h, dim=$a)",
    "h = h.cumprod($d)",
    "h = h.cummax($c).values",
    "h = torch.cummax(h, 0)[0]",
    "h = h.logcumsumexp($d)",
    "h = h.sort($c).values",
    "h = h.sort($c, descending=True)[0]",
    "h = torch.sort(h, dim=0).values",
    "h = h.sort()[0]",
    "h = h.msort()",
    "h = h.topk(2, $c).values",
    "h = torch.topk(h, 2, dim=0)[0]",
    "h = h.topk(3)[0]",
    "h = h.kthvalue(2, $c, keepdim=True)[0] + h",
    "h = h * (h >= h.topk(2, $c).values.amin($c, keepdim=True))",
    "h = h - h.logsumexp($c, keepdim=True)",
    "h = h + h.amax($d, keepdim=True)",
    "h = h + h.max($c, keepdim=True)[0]",
    "h = h * F.one_hot(h.argmax($c), h.size($c)).movedim(-1, $c)",
    "h = h + h.argmax($c, keepdim=True)",
    "h = h + h.median($c, keepdim=True).values",
    "h = h + h.sum($c, keepdim=True)",
    "h = h * h.prod($d, keepdim=True)",
    "h = h + h.mean()",
    "h = h + h.max()",
    "h = h / h.numel()",
    "h = h + h.mean(list(range(1, $dims)), keepdim=True)",
    "h = h + h.flatten(1).sum(1).view(-1, *[1] * ($dims - 1))",
    "h = h.diff(dim=$c)",
    "h = torch.diff(h, dim=$d, prepend=h.narrow($d, 0, 1))",
    "h = torch.gradient(h, dim=$c)[0]",
    "h = F.gumbel_softmax(h, hard=False, dim=$c) if self.training else h.softmax($c)",
    "h = F.hardtanh(h).unique(dim=0, return_inverse=True)[1].view(-1, *[1] * ($dims - 1)) * 0.1 + h",
    "h = h.quantile(0.5, $c, keepdim=True) + h",
    "h = F.cosine_similarity(h, h.roll(1, 0), dim=$c).unsqueeze($c) + h",
    "h = torch.cdist(h.flatten(1), h.flatten(1)).mean() + h",
    "h = h * h.count_nonzero($c).unsqueeze($c)",
    "h = torch.trapezoid(h, dim=$c).unsqueeze($c) + h",
    "h = h + F.mse_loss(h, torch.zeros_like(h))",
    "h = torch.searchsorted(torch.linspace(-1, 1, 5), h.contiguous()).double() * h",
    "h = torch.bucketize(h, torch.linspace(-1, 1, 5)) * 0.1 + h",
    "h = torch.histc(h, 4).sum() * 0.01 + h",
    "h = h.corrcoef() @ h if h.dim() == 2 else h",
    "h = torch.cov(h.T).trace() + h if h.dim() == 2 else h",
)
pieces("mixing", "h = h.mean($s)", "h = h.sum($s)", "h = h.amax($s)", "h = h.max($s).values",
       "h = h.mean(dim=[$s])", "h = torch.mean(h, $s)", when="space", channel=-1)  # fmt: skip
pieces("mixing", "h = h.mean($c)", "h = h.sum($c)", "h = h.norm(dim=$c)", "h = h.amax(axis=$c)",
       "h = h.std($c)", "h = h.logsumexp($c)", when="space", channel=-1)  # fmt: skip

# -- products

W = "$m = nn.Parameter(torch.randn($W, $C))"
pieces("products", "h = F.linear(h, $m)", "h = h @ $m.T", "h = h.matmul($m.t())",
       "h = torch.einsum('...c,oc->...o', h, $m)", "h = torch.tensordot(h, $m, dims=([-1], [1]))",
       "h = torch.inner(h, $m)", "h = F.linear(h, $m) + h.sum(-1, keepdim=True)",
       init=W, when="last")  # fmt: skip
pieces("products", "h = torch.einsum('bc...,oc->bo...', h, $m)",
       "h = torch.einsum($t := 'oc,bc...->bo...', $m, h)",
       "h = torch.tensordot($m, h, ([1], [1])).movedim(0, 1)", init=W, when="ch1|2d")  # fmt: skip
pieces("products", "h = torch.mm(h, $m.t())", "h = torch.addmm(torch.zeros($m.size(0)), h, $m.t())",
       "h = torch.addmm($m.sum(1), h, $m.T, beta=0.5, alpha=2)", init=W, when="2d")  # fmt: skip
pieces("products", "h = torch.bmm(h, $m.t().expand(len(h), -1, -1))",
       "h = torch.baddbmm(torch.zeros(1, 1, $m.size(0)), h, $m.t().expand(len(h), -1, -1))",
       init=W, when="3d last")  # fmt: skip
pieces(
    "products",
    "h = torch.einsum('btc,bsc->bts', h, h) @ h",
    "h = (h @ h.transpose(1, 2)).softmax(-1) @ h",
    "h = (h.mT @ h) @ h.mT\nh = h.mT",
    "h = torch.bmm(h, torch.bmm(h.transpose(1, 2), h))",
    "h = h @ h.transpose(-2, -1) @ h / h.size(-1)",
    "h = torch.baddbmm(h, torch.full((len(h), h.size(1), h.size(1)), 0.1), h)",
    "h = torch.matmul(torch.ones(h.size(1), h.size(1)), h)",
    "h = torch.einsum('bij,bkj->bik', [h, h])",
    "h = torch.addbmm(h[0], h.mT @ h, h.mT @ h)[None] + h if h.size(1) == h.size(2) else h",
    when="3d",
)
pieces(
    "products",
    "h = h @ torch.eye($CS) if h.size(-1) == $C else h",
    "h = torch.einsum('bc,bd->bcd', h, h).flatten(1)",
    "h = torch.einsum('bc,bd->bd', h, h)",
    "h = torch.outer(h[0], h[0]).sum() + h",
    "h = h @ h.T @ h",
    "h = torch.kron(h, torch.ones(1, 2))",
    "h = h.mm(h.t()).mm(h)",
    "h = torch.linalg.multi_dot([h, h.T, h])",
    "h = torch.chain_matmul(h, h.T, h) if False else h @ h.T @ h",
    "h = h.addmm(h, torch.eye(h.size(1)))",
    "h = h * (h @ torch.ones(h.size(1), 1))",
    "h = torch.mv(h, torch.ones(h.size(1)))[:, None] + h",
    "h = torch.linalg.solve(torch.eye(len(h)) * 2, h)",
    "h = torch.vander(h[:, 0], 3).sum() * 0.1 + h",
    "h = h.addcmul(h, h, value=0.5)",
    "h = h + torch.trace(h)",
    "h = h + torch.linalg.matrix_norm(h)",
    "h = $m(h, h)",
    init="$m = nn.Bilinear($C, $C, $W)",
    when="2d",
)
pieces(
    "products",
    "h = h * $m",
    "h = h + $m.expand_as(h)",
    "h = torch.addcmul(h, h, $m)",
    "h = torch.lerp(h, $m, 0.3)",
    "h = h * $m if $m.numel() == h.size($c) else h * 2",
    "h = h.mul($m).add($m)",
    "h = torch.where($m > 0.5, h, -h)",
    init="$m = nn.Parameter(torch.rand($bc))",
)
