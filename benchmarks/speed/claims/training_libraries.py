"""So do layers whose weights are turned or computed, and language models with RMS norms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import splitgrow
from benchmarks.speed.networks import request
from benchmarks.speed.results import Measurement
from benchmarks.speed.settings import Claim, Settings
from benchmarks.speed.steps import compared, training_step
from benchmarks.vision import torchvision

FRACTION = 0.25


class _Logits(nn.Module):
    """A language model as a function of tokens alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=tokens, use_cache=False).logits
        return logits


def _language_model(name: str, small: bool) -> nn.Module:  # noqa: FBT001
    torchvision()
    import transformers  # noqa: PLC0415 - only this claim needs it

    width, depth = (64, 2) if small else (384, 4)
    sizes: dict[str, Any] = {"vocab_size": 1000, "bos_token_id": 1, "eos_token_id": 2}
    if name == "GPT-2":
        config = transformers.GPT2Config(
            n_embd=width, n_layer=depth, n_head=width // 32, n_positions=128, **sizes
        )
        return _Logits(transformers.GPT2LMHeadModel(config))
    heads = {"num_attention_heads": width // 32, "num_key_value_heads": width // 32}
    config = transformers.LlamaConfig(
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=depth,
        pad_token_id=0,
        **heads,
        **sizes,
    )
    return _Logits(transformers.LlamaForCausalLM(config))


def _standardised(small: bool) -> nn.Module:  # noqa: FBT001
    """ResNetV2 with standardised weights and group norms, of four stages."""
    torchvision()
    from timm.models.resnetv2 import ResNetV2  # noqa: PLC0415 - only this claim needs it

    widths = (64, 64, 128, 128) if small else (256, 512, 1024, 2048)
    made: nn.Module = ResNetV2((1, 1, 1, 1), widths, num_classes=100)
    return made


def _standardising_again(plain: nn.Module, model: nn.Module) -> nn.Module:
    """A merged network with layers of the model's own types: a merged weight is standardised."""
    for name, layer in plain.named_modules():
        own = type(getattr(model.get_submodule(name), "original", layer))
        if own.__name__ == "StdConv2d":
            layer.__class__ = own
            vars(layer)["eps"] = 1e-6
    return plain


def _tokens(settings: Settings) -> Tensor:
    shape = (2, 16) if settings.quick else (8, 128)
    return torch.randint(3, 1000, shape, device=settings.device)


def _images(settings: Settings) -> Tensor:
    shape = (2, 3, 64, 64) if settings.quick else (8, 3, 128, 128)
    return torch.randn(shape, device=settings.device)


_NETWORKS: dict[str, tuple[Callable[[bool], nn.Module], Callable[[Settings], Tensor]]] = {
    "GPT-2, transposed weights": (partial(_language_model, "GPT-2"), _tokens),
    "Llama, RMS norms": (partial(_language_model, "Llama"), _tokens),
    "ResNetV2, standardised weights": (_standardised, _images),
}


def run(settings: Settings) -> Iterator[Measurement]:
    """Each network, every layer that can grow grown once, against the plain one of its widths."""
    for name, (make, given) in _NETWORKS.items():
        torch.manual_seed(0)
        x = given(settings)
        model: Any = splitgrow.growable(make(settings.quick).to(settings.device).train(), x[:2])
        model.expand(request(model, FRACTION))
        plain = _standardising_again(splitgrow.merge(model), model)
        contestants = {"grown": training_step(model, x), "plain": training_step(plain, x)}
        yield compared(name, contestants, settings, *contestants)


CLAIM = Claim(
    "training-libraries",
    f"Training step of models of transformers and timm, the past frozen, every layer "
    f"{FRACTION:.1%} wider, over the full step of a plain network of the same widths",
    run,
)
