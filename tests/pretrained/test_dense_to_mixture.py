"""Dense models as mixtures of experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import randomise
from hf_models import IDS, SMALL, gpt2, hugging_face, llama
from torch import Tensor, nn

import splitgrow
from splitgrow.errors import InexactError, UnsupportedLayerError, UnsupportedModelError

X = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))


def net() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), mlp(), nn.Tanh(), mlp(), nn.Linear(4, 2)).eval()


@pytest.mark.parametrize("paths", ["1", ["1", "3"], "[13]"])
def test_a_model_of_ones_own_gets_mixtures_and_computes_the_same(paths: Any) -> None:
    model = net()
    state = {n: t.clone() for n, t in model.state_dict().items()}
    made: Any = splitgrow.to_mixture(model, paths, experts=4, top_k=2, example_inputs=X)
    assert type(made) is nn.Sequential
    assert type(made[1]) is splitgrow.MixtureOfExperts
    assert type(made[3]) is (nn.Sequential if paths == "1" else splitgrow.MixtureOfExperts)
    assert (made(X) - model(X)).abs().max() < 1e-6
    assert type(model[1]) is nn.Sequential
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in state.items())
    assert not made.training


def test_a_grown_model_becomes_a_plain_one_with_mixtures() -> None:
    model = splitgrow.growable(net(), X)
    model.expand_layer("1.0", 4)
    made: Any = splitgrow.to_mixture(model, "1", experts=2, top_k=1)
    assert made[1].experts[0][0].out_features == 12
    assert (made(X) - model(X)).abs().max() < 1e-6
    splitgrow.growable(made, X).expand_experts(2)


class Mixing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + x.mean()


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.own = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.own


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (Mixing(), "does not work on each token by itself"),
        (nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Softmax(0)), "each token by itself"),
        (Odd(), "no layer of a known type"),
        (nn.LSTM(4, 4), "does not"),
    ],
)
def test_a_module_that_is_no_mlp_is_refused(module: nn.Module, words: str) -> None:
    with pytest.raises(UnsupportedLayerError, match=words):
        splitgrow.to_mixture(nn.Sequential(nn.Linear(4, 4), module), "1", experts=2)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        (("7",), ValueError, "no module has the path '7'"),
        (("1.*.*",), ValueError, "no module has the path"),
        ((["1", "1.0"],), ValueError, "`1.0` is part of another module"),
        ((3,), TypeError, "mlp is the path"),
        (([],), ValueError, "names no module"),
    ],
)
def test_wrong_paths_are_told(given: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        splitgrow.to_mixture(net(), *given, experts=2)


def test_wrong_numbers_and_models_without_values_are_told() -> None:
    with pytest.raises(ValueError, match="top_k"):
        splitgrow.to_mixture(net(), "1", experts=2, top_k=3)
    with pytest.raises(UnsupportedModelError, match="in values, and on the meta device"):
        splitgrow.to_mixture(net().to("meta"), "1", experts=2)


class Asking(nn.Module):
    """Counts its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = mlp()

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x) * sum(1 for _ in self.parameters())


def test_a_model_that_would_compute_something_else_is_refused() -> None:
    with pytest.raises(InexactError, match="would change what it computes"):
        splitgrow.to_mixture(Asking(), "mlp", experts=2, example_inputs=X)


# -- classes of transformers ---------------------------------------------------------------------


def of(kind: str, **more: Any) -> Any:
    hf = hugging_face()
    config = getattr(hf, f"{kind}Config")(**{**SMALL, **more})
    torch.manual_seed(0)
    return randomise(getattr(hf, f"{kind}ForCausalLM")(config)).eval()


CLASSES = {
    "Llama": "Mixtral",
    "Mistral": "Mixtral",
    "Qwen2": "Qwen2Moe",
    "Qwen3": "Qwen3Moe",
    "Olmo2": "FlexOlmo",
    "Granite": "GraniteMoe",
}


@pytest.mark.zoo
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", CLASSES)
def test_a_model_of_transformers_gets_the_librarys_class(kind: str, tmp_path: Path) -> None:
    model = of(kind, **({"head_dim": 4} if kind == "Qwen3" else {}))
    paths = ["model.layers.1.mlp", "model.layers.0.mlp"]  # in any order
    made: Any = splitgrow.to_mixture(model, paths, experts=4, top_k=2)
    assert type(made).__name__ == f"{CLASSES[kind]}ForCausalLM"
    before = model(IDS).logits
    assert (made(IDS).logits - before).abs().max() <= 1e-5 * before.abs().max()
    made.save_pretrained(tmp_path / "plain")
    again = type(made).from_pretrained(tmp_path / "plain").eval()
    assert (again(IDS).logits - before).abs().max() <= 1e-5 * before.abs().max()
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(made.generate(IDS, **options), model.generate(IDS, **options))
    grown = splitgrow.growable(made, (IDS,))
    grown.expand_experts(4)
    splitgrow.save_pretrained(grown, tmp_path / "grown")
    read = type(splitgrow.merge(grown)).from_pretrained(tmp_path / "grown").eval()
    assert (read(IDS).logits - before).abs().max() <= 1e-5 * before.abs().max()
    assert read.config.num_experts_per_tok == 4


@pytest.mark.zoo
@pytest.mark.filterwarnings("ignore")
def test_a_class_without_such_a_twin_keeps_itself_and_gets_our_module() -> None:
    torch.manual_seed(0)
    model = randomise(gpt2()).eval()
    made: Any = splitgrow.to_mixture(model, "transformer.h.*.mlp", experts=3, top_k=2)
    assert type(made) is type(model)
    assert type(made.transformer.h[0].mlp) is splitgrow.MixtureOfExperts
    assert (made(IDS).logits - model(IDS).logits).abs().max() < 1e-5


@pytest.mark.zoo
@pytest.mark.filterwarnings("ignore")
def test_one_mlp_of_several_fits_no_class_and_gets_our_module() -> None:
    torch.manual_seed(0)
    model = randomise(llama()).eval()
    made: Any = splitgrow.to_mixture(model, "model.layers.1.mlp", experts=3, top_k=2)
    assert type(made) is type(model)
    assert (made(IDS).logits - model(IDS).logits).abs().max() < 1e-5


@pytest.mark.zoo
@pytest.mark.filterwarnings("ignore")
def test_a_class_that_computes_something_else_is_not_taken() -> None:
    """The control: another base of the rotary embedding has the same shapes."""
    from splitgrow.pretrained import mixture_classes  # noqa: PLC0415

    model = of("Llama")
    paths = [f"model.layers.{n}.mlp" for n in range(2)]
    found = mixture_classes.as_mixture_class(model, paths, (2, 1), None)
    assert found is not None
    own = mixture_classes._settings

    def other(*args: Any) -> dict[str, Any]:
        return {**own(*args), "rms_norm_eps": 0.5}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mixture_classes, "_settings", other)
        assert mixture_classes.as_mixture_class(model, paths, (2, 1), None) is None
