"""Pools, pads, folds, attention, recurrent layers, embeddings, functional layers."""

from __future__ import annotations

from wild.templates import piece, pieces

pieces(
    "space",
    "h = F.max_pool2d(h, 2)",
    "h = F.avg_pool2d(h, 2, 1)",
    "h = F.adaptive_avg_pool2d(h, 1)",
    "h = F.adaptive_max_pool2d(h, (2, 2))",
    "h = F.interpolate(h, scale_factor=2)",
    "h = F.interpolate(h, size=(3, 3), mode='bilinear', align_corners=False)",
    "h = F.interpolate(h, h.shape[2:], mode='nearest')",
    "h = F.pad(h, (1, 1))",
    "h = F.pad(h, (0, 0, 0, 0, 0, 1))",
    "h = F.pad(h, (0, 0, 0, 0, 1, 0))",
    "h = F.pad(h, (1, 0, 0, 1), mode='reflect')",
    "h = F.pad(h, (0, 0, 0, 0, 0, h.size(1)))",
    "$t = F.unfold(h, 2)\nh = F.fold($t, h.shape[-2:], 2)",
    "h = F.unfold(h, 2).unsqueeze(-1)",
    "h = h.unfold(2, 2, 1).mean(-1)",
    "h = F.pixel_unshuffle(h, 2)",
    "h = F.lp_pool2d(h.abs() + 0.1, 2, 2)",
    "h = F.conv2d(h, torch.ones(h.size(1), 1, 2, 2), groups=h.size(1))",
    "h = F.conv2d(h, torch.full((5, h.size(1), 1, 1), 0.3))",
    "h = F.conv_transpose2d(h, torch.full((h.size(1), 3, 2, 2), 0.3))",
    "h = F.grid_sample(h, torch.zeros(len(h), 2, 2, 2), align_corners=False)",
    "h = torch.fft.fft2(h).abs()",
    "h = torch.fft.ifft2(torch.fft.fft2(h)).real",
    "h = torch.fft.irfft(torch.fft.rfft(h), h.size(-1))",
    "h = F.max_pool2d(h.transpose(1, 2), 2).transpose(1, 2)",
    "h = h.mean((2, 3), keepdim=True) * h",
    "h = h * h.amax(1, keepdim=True).sigmoid()",
    "h, $t = F.max_pool2d(h, 2, return_indices=True)\nh = F.max_unpool2d(h, $t, 2)",
    "h = F.channel_shuffle(h, $g)",
    "h = nn.ChannelShuffle($g)(h)",
    "h = F.affine_grid(torch.eye(2, 3).expand(len(h), 2, 3), [len(h), 1, 4, 4]).mean() + h",
    when="4d ch1",
)
pieces("space", "h = h.mean((2, 3))", "h = F.adaptive_avg_pool2d(h, 1).flatten(1)",
       "h = h.mean((-2, -1))", "h = h.amax((2, 3))", "h = F.adaptive_avg_pool2d(h, (1, 1))[..., 0, 0]",
       "h = h.flatten(2).mean(-1)", when="4d ch1", channel=1)  # fmt: skip
pieces("space", "h = F.pixel_shuffle(h, 2)", "h = nn.PixelShuffle(2)(h)", when="4d ch1 fourfold")
pieces(
    "space",
    "h = F.max_pool1d(h, 2)",
    "h = F.avg_pool1d(h, 2)",
    "h = F.adaptive_avg_pool1d(h, 2)",
    "h = F.pad(h, (1, 1))",
    "h = F.pad(h, (0, 0, 1, 0))",
    "h = F.interpolate(h, scale_factor=2)",
    "h = torch.fft.fft(h).abs()",
    "h = torch.fft.rfft(h, dim=1).abs()",
    "h = torch.fft.ifft(torch.fft.fft(h, dim=$c), dim=$c).real",
    "h = torch.view_as_real(torch.view_as_complex(torch.stack([h, h], -1)))[..., 0]",
    "h = torch.fft.fftshift(h, dim=$c)",
    "h = F.max_pool1d(h.transpose(1, 2), 2).transpose(1, 2)",
    "h = F.avg_pool1d(h.transpose(1, 2), 3, 1, 1).transpose(1, 2)",
    "h = torch.complex(h, h).abs()",
    "h = torch.polar(h, h).real",
    when="3d",
)
pieces("space", "h = F.pad(h, (0, 1))", "h = F.pad(h, (1, 0), value=0.5)", "h = torch.fft.fft(h).real",
       "h = F.max_pool1d(h, 2)", "h = F.avg_pool1d(h.unsqueeze(1), 2).squeeze(1)",
       "h = F.max_pool1d(h[None], 2)[0]", when="2d")  # fmt: skip

# -- attention, recurrent layers

pieces(
    "attention",
    "$t = self.q$name_m(h).view(len(h), -1, $m, $W).transpose(1, 2)\n"
    "h = ($t @ $t.transpose(-1, -2)).softmax(-1) @ $t\n"
    "h = h.transpose(1, 2).reshape(len(h), -1, $m * $W)",
    "$t = self.q$name_m(h).unflatten(-1, ($m, -1)).transpose(1, 2)\n"
    "h = F.scaled_dot_product_attention($t, $t, $t).transpose(1, 2).flatten(2)",
    "$t = self.q$name_m(h).reshape(len(h), -1, $m, self.q$name_m.out_features // $m)\n"
    "h = torch.einsum('bthd,bshd->bhts', $t, $t) / math.sqrt($t.size(-1))\n"
    "h = torch.einsum('bhts,bshd->bthd', h.softmax(-1), $t).flatten(2)",
    "$t = self.q$name_m(h).split($m * $W, -1)[0].view(len(h), h.size(1), $m, -1).permute(0, 2, 1, 3)\n"
    "h = F.scaled_dot_product_attention($t, $t, $t, is_causal=True)\n"
    "h = h.permute(0, 2, 1, 3).contiguous().view(len(h), -1, $m * $W)",
    "$t = self.q$name_m(h).chunk($m, -1)\nh = torch.cat([F.scaled_dot_product_attention($u, $u, $u)"
    " for $u in $t], -1)",
    init="$m = 2\nself.q$name_m = nn.Linear($C, $m * $W)",
    when="3d last",
)
pieces(
    "attention",
    "$t, $u, $v = $n(h).chunk(3, -1)\nh = F.scaled_dot_product_attention($t, $u, $v)",
    "$t = $n(h).view(len(h), h.size(1), 3, $m, -1).permute(2, 0, 3, 1, 4)\n"
    "h = F.scaled_dot_product_attention(*$t).transpose(1, 2).flatten(2)",
    "$t, $u, $v = $n(h).unflatten(-1, (3, $m, -1)).permute(2, 0, 3, 1, 4).unbind(0)\n"
    "h = (($t * $t.size(-1) ** -0.5) @ $u.mT).softmax(-1) @ $v\nh = h.transpose(1, 2).flatten(2)",
    "$t, $u, $v = torch.split($n(h), $n.out_features // 3, dim=-1)\n"
    "h = ($t @ $u.mT * self.scale$name_m).softmax(-1) @ $v",
    init="$m = 2\n$n = nn.Linear($C, 24)\nself.scale$name_m = 8 ** -0.5",
    when="3d last",
)
pieces(
    "attention",
    "h = F.scaled_dot_product_attention(h, h, h)",
    "h = F.scaled_dot_product_attention(h, h, h, scale=0.5)",
    "h = F.scaled_dot_product_attention(h.mT, h.mT, h.mT).mT",
    "h = F.scaled_dot_product_attention(h[:, None], h[:, None], h[:, None], is_causal=True)[:, 0]",
    when="3d",
)
pieces("attention", "h, $t = $m(h, h, h)", "h = $m(h, h, h, need_weights=False)[0] + h",
       init="$m = nn.MultiheadAttention($C, 2, batch_first=True)", when="3d last even")  # fmt: skip
piece("attention", "h = $m(h)", when="3d last even",
      init="$m = nn.TransformerEncoderLayer($C, 2, 8, 0.0, batch_first=True)")  # fmt: skip
pieces("recurrent", "h, $t = $m(h)", "h = $m(h)[0]", "h, _ = $m(h.transpose(0, 1))\nh = h.transpose(0, 1)",
       "h = $m(h)[1][-1]", init="$m = nn.GRU($C, $W, batch_first=True)", when="3d last",
       channel=-1)  # fmt: skip
pieces("recurrent", "h, ($t, $u) = $m(h)", "h = $m(h)[1][0][-1]",
       init="$m = nn.LSTM($C, $W, batch_first=True)", when="3d last", channel=-1)  # fmt: skip
piece("recurrent", "h = $m(h)", init="$m = nn.GRUCell($C, $W)", when="2d")
piece("recurrent", "h = $m(h)[0]", init="$m = nn.LSTMCell($C, $W)", when="2d")
piece("recurrent", "$t = h[:, 0]\nfor n in range(h.size(1)):\n    $t = torch.tanh($m($t) + h[:, n])\n"
      "h = $t", init="$m = nn.Linear($C, $C)", when="3d last", channel=-1)  # fmt: skip
pieces("embeddings", "h = h + $m(torch.arange(h.size(1)))", "h = h + $m.weight[: h.size(1)]",
       "h = h + F.embedding(torch.arange(h.size(1)), $m.weight)",
       "h = h + $m(torch.arange(h.size(1))).expand(len(h), -1, -1)",
       init="$m = nn.Embedding(9, $C)", when="3d last")  # fmt: skip
piece("embeddings", "h = h + $m[:, : h.size(1)]", init="$m = nn.Parameter(torch.randn(1, 9, $C))",
      when="3d last")  # fmt: skip
piece("embeddings", "h = torch.cat([$m.expand(len(h), -1, -1), h], 1)",
      init="$m = nn.Parameter(torch.randn(1, 1, $C))", when="3d last")  # fmt: skip
piece("embeddings", "h = torch.cat([$m.expand(len(h), -1, -1), h], 1)[:, 0]", channel=-1,
      init="$m = nn.Parameter(torch.randn(1, 1, $C))", when="3d last")  # fmt: skip
piece("embeddings", "h = h + $m(torch.zeros(len(h), dtype=torch.long)).view(-1, $bc0)"
      .replace("-1, $bc0", "-1, *[($bc)][1:]"), init="$m = nn.Embedding(4, $C)")  # fmt: skip
piece("embeddings", "h = h @ $m.weight.t()", init="$m = nn.Embedding(7, $C)", when="last")
piece("embeddings", "h = $m(h.flatten(1).argmax(1))", init="$m = nn.Embedding($numel, $W)",
      channel=-1)  # fmt: skip

# -- functional layers with parameters of their own

piece("functional", "h = F.conv2d(h, $m, $n, padding=1)", when="4d ch1",
      init="$m = nn.Parameter(torch.randn($W, $C, 3, 3))\n$n = nn.Parameter(torch.randn($W))")  # fmt: skip
piece("functional", "h = F.conv1d(h, $m)", init="$m = nn.Parameter(torch.randn($W, $C, 1))",
      when="3d ch1")  # fmt: skip
piece("functional", "h = F.layer_norm(h, ($C,), $m)", init="$m = nn.Parameter(torch.rand($C))",
      when="last")  # fmt: skip
piece("functional", "h = F.group_norm(h, $g, $m)", init="$m = nn.Parameter(torch.rand($C))",
      when="ch1|2d")  # fmt: skip
piece("functional", "h = F.conv2d(h, $m.expand(h.size(1), 1, 3, 3), padding=1, groups=h.size(1))",
      init="$m = nn.Parameter(torch.rand(1, 1, 3, 3))", when="4d ch1")  # fmt: skip
piece("functional", "h = torch.func.functional_call($m, dict($m.named_parameters()), (h,))",
      init="$m = nn.Linear($C, $W)", when="last")  # fmt: skip
piece("functional", "h = F.linear(h, $m.weight * $n, $m.bias)", when="last",
      init="$m = nn.Linear($C, $W)\n$n = nn.Parameter(torch.rand(1, $C))")  # fmt: skip
piece("functional", "$t = $m(h.mean(1))\nh = torch.einsum('btc,bco->bto', h, $t.view(len(h), $C, 2))",
      init="$m = nn.Linear($C, 2 * $C)", when="3d last")  # fmt: skip
piece("functional", "h = h * $m.weight.diagonal().sum() + $m(h).sum() * 0.01", when="last",
      init="$m = nn.Linear($C, $C)")  # fmt: skip
piece("functional", "h = torch.func.vmap($m)(h)", init="$m = nn.Linear($C, $W)", when="last")
piece("functional", "h = torch.vmap(lambda row: row / (1 + row.abs().sum()))(h)")
piece("functional", "h = h + torch.autograd.grad(h.pow(2).sum(), h, create_graph=True)[0]"
      " if h.requires_grad else h * 3")  # fmt: skip
