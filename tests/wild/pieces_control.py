"""Control flow, contexts, functions of all kinds, and further inputs."""

from __future__ import annotations

from wild.drafts import Draft, Piece, register
from wild.pieces_layers import held, made
from wild.templates import piece, pieces

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
    head = draft.rng.choice(WRAPS)
    with draft.block(head):
        draft.body.append(f"h = {held(draft, made(draft, draft.width))}")


def write_autocast(draft: Draft) -> None:
    """A layer under autocast."""
    with draft.block("with torch.autocast('cpu', dtype=torch.bfloat16):"):
        draft.body.append(f"h = {held(draft, made(draft))}")
    draft.body.append("h = h.double()")
    draft.coarse = 0.1


def write_tried(draft: Draft) -> None:
    """A layer that is tried."""
    with draft.block("try:", "except RuntimeError:\n    h = h * 0.5"):
        draft.body.append(f"h = {held(draft, made(draft))}")


register(Piece("control", "wrapped", write_wrapped))
register(Piece("control", "wrapped", write_wrapped))
register(Piece("control", "autocast", write_autocast))
register(Piece("control", "tried", write_tried))
