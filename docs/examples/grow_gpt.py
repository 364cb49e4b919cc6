"""Grows a small GPT in its MLPs, its stream, its depth and its vocabulary while it trains."""

import os

import torch
from torch import Tensor, nn

import splitgrow

STEPS = 2 if os.environ.get("SPLITGROW_EXAMPLE") == "small" else 100
LENGTH = 32


class Block(nn.Module):
    """Attention and an MLP, each added onto the stream, with norms in front."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, width // heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length = x.shape[:2]
        qkv = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        seen = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(batch, length, -1))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """Embeddings of tokens and places, blocks, a norm and a head."""

    def __init__(self, words: int, width: int, depth: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(words, width), nn.Embedding(LENGTH, width)
        self.blocks = nn.ModuleList(Block(width, width // 8) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


text = "".join(f"{a} + {b} = {a + b}\n" for a in range(40) for b in range(40))
letters = {letter: number for number, letter in enumerate(sorted(set(text)))}
data = torch.tensor([letters[letter] for letter in text])


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    loss = torch.tensor(0.0)
    for _ in range(STEPS):
        starts = torch.randint(len(data) - LENGTH - 1, (16,)).tolist()
        ids = torch.stack([data[start : start + LENGTH + 1] for start in starts])
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        optimizer.step()
    return loss.item()


torch.manual_seed(0)
model = splitgrow.growable(GPT(len(letters), width=16, depth=2), data[None, :8])
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
on = {"freeze": False, "optimizer": optimizer}
print(f"small: loss {train(model, optimizer):.3f}")
print(model.expand({"blocks.0.up": 64, "blocks.1.up": 64}, **on))
print(model.expand_layer("tokens", 16, **on))  # the stream
print(model.insert_layer("blocks.1", "block", **on))
print(f"grown: loss {train(model, optimizer):.3f}")
print(model.expand_vocabulary(4, "tokens", head="head", **on))
print(f"{sum(p.numel() for p in splitgrow.merge(model).parameters()):,} parameters")
