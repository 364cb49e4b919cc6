"""Grown models of transformers, saved for `from_pretrained`, or refused before that."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_equal, assert_identical
from hf_models import (
    IDS,
    SMALL,
    all_of,
    bert,
    deepseek,
    everything,
    gpt2,
    growable,
    grown,
    hugging_face,
    llama,
    mixtral,
    sliding,
    stream_and_heads,
    tied,
)
from torch import nn

import splitgrow
from benchmarks.pretrained.trying import Reader, reader
from splitgrow.errors import ExportError

pytestmark = [pytest.mark.zoo, pytest.mark.filterwarnings("ignore")]

WAYS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any], dict[str, Any]]] = {
    "hidden units": (
        llama,
        lambda m: m.expand(all_of(m, "up_proj", times=5)),
        {"intermediate_size": 29},
    ),
    "stream": (
        llama,
        lambda m: m.expand({"model.embed_tokens": 8}),
        {"hidden_size": 24, "rms_norm_eps": 1e-6 * 16 / 24},
    ),
    "stream and heads": (
        llama,
        stream_and_heads,
        {"hidden_size": 32, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 4},
    ),
    "vocabulary": (llama, lambda m: m.expand_vocabulary(3), {"vocab_size": 53}),
    "tied vocabulary": (tied, lambda m: m.expand_vocabulary(3), {"vocab_size": 53}),
    "tied stream": (tied, lambda m: m.expand({"model.embed_tokens": 8}), {"hidden_size": 24}),
    "depth": (
        llama,
        lambda m: m.insert_layer("model.layers.0", "block"),
        {"num_hidden_layers": 3},
    ),
    "experts": (
        mixtral,
        lambda m: m.expand_experts(8),
        {"num_local_experts": 12, "num_experts_per_tok": 6},
    ),
    "hidden units of experts": (
        mixtral,
        lambda m: m.expand({each.name: 16 for each in m.layers if "experts" in each.name}),
        {"intermediate_size": 32, "num_local_experts": 4},
    ),
    "stream with experts": (
        mixtral,
        lambda m: m.expand({"model.embed_tokens": 8}),
        {"hidden_size": 24, "head_dim": 4},
    ),
    "experts in groups": (
        deepseek,
        lambda m: m.expand_experts(4),
        {"n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 4, "topk_group": 2},
    ),
    "depth of a hybrid": (
        sliding,
        lambda m: m.insert_layer("model.layers.0", "block"),
        {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"]},
    ),
    "everything": (
        llama,
        everything,
        {"num_hidden_layers": 4, "vocab_size": 53, "hidden_size": 32, "intermediate_size": 29},
    ),
    "gpt2's hidden units": (gpt2, lambda m: m.expand(all_of(m, "c_fc", times=8)), {"n_inner": 72}),
    "gpt2's depth": (
        gpt2,
        lambda m: m.insert_layer("transformer.h.1", "block"),
        {"n_layer": 3},
    ),
    "a classifier's head": (
        bert,
        lambda m: m.expand_layer("classifier", 2),
        {"id2label": {str(n): f"LABEL_{n}" for n in range(5)}},
    ),
}


@pytest.fixture(scope="module")
def apart() -> Iterator[Reader]:
    """A process that cannot import splitgrow."""
    with reader() as made:
        yield made


@pytest.mark.parametrize(("make", "grow", "settings"), WAYS.values(), ids=WAYS.keys())
def test_a_grown_model_is_read_without_splitgrow_as_it_is(
    make: Callable[[], Any],
    grow: Callable[[Any], Any],
    settings: dict[str, Any],
    apart: Reader,
    tmp_path: Path,
) -> None:
    model = grown(make, grow)
    splitgrow.save_pretrained(model, tmp_path / "checkpoint")
    config = json.loads((tmp_path / "checkpoint" / "config.json").read_text())
    eps = settings.pop("rms_norm_eps", None)
    assert {key: config[key] for key in settings} == settings
    assert eps is None or config["rms_norm_eps"] == pytest.approx(eps, rel=1e-12)
    kind, writes = type(make()).__name__, make is not bert
    told = {"inputs": (IDS,), "dtype": torch.float64, "generates": writes}
    found = apart.read(tmp_path, kind, told)
    with torch.no_grad():
        assert_equal(found["outputs"][0], model(IDS).logits)
    if writes:
        options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
        text = model.generate(IDS, pad_token_id=0, **options)
        assert torch.equal(found["text"], text)


REFUSED: dict[str, tuple[Callable[[], Any], Callable[[Any], Any], str]] = {
    "one layer's hidden units": (
        llama,
        lambda m: m.expand_layer("model.layers.0.mlp.up_proj", 8),
        r"intermediate_size=32 it would fit if these had grown alike: "
        r"`model.layers.1.mlp.gate_proj`",
    ),
    "heads, where these divide the stream": (
        gpt2,
        lambda m: m.expand(all_of(m, "c_attn")),
        r"`transformer.h.0.attn.c_attn.weight` is \(16, 72\), where it gives \(16, 48\)",
    ),
    "a width that is no multiple of the heads": (
        llama,
        lambda m: m.expand({"model.embed_tokens": 3}),
        "LlamaConfig does not allow .* not a multiple of the number of attention heads",
    ),
    "two values of eps": (
        lambda: hugging_face().Qwen3ForCausalLM(hugging_face().Qwen3Config(**SMALL, head_dim=4)),
        lambda m: m.expand({"model.embed_tokens": 16}),
        r'q_norm.variance_epsilon` is 1e-06, where it gives 5e-07 .* initializer="duplicate"',
    ),
    "something that the class has no place for": (
        llama,
        lambda m: m.insert_layer("model.layers.0.mlp", "residual"),
        "`model.layers.0.mlp` has no place in the model's class",
    ),
    "positions that the class makes anew": (
        lambda: hugging_face().MarianMTModel(
            hugging_face().MarianConfig(
                vocab_size=50,
                d_model=16,
                encoder_layers=1,
                decoder_layers=1,
                encoder_attention_heads=2,
                decoder_attention_heads=2,
                encoder_ffn_dim=24,
                decoder_ffn_dim=24,
                pad_token_id=0,
                decoder_start_token_id=1,
            )
        ),
        lambda m: m.expand(
            {"model.shared": 16} | all_of(m, "k_proj", times=2), initializer="duplicate"
        ),
        r"makes `model\.encoder\.embed_positions\.weight` anew",
    ),
    "a head alone": (
        llama,
        lambda m: m.expand_layer("lm_head", 2),
        "no LlamaConfig describes the model",
    ),
}


@pytest.mark.parametrize(("make", "grow", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_no_config_describes_is_refused_and_nothing_is_written(
    make: Callable[[], Any], grow: Callable[[Any], Any], reason: str, tmp_path: Path
) -> None:
    model = grown(make, grow)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ExportError, match=reason):
        splitgrow.save_pretrained(model, tmp_path / "checkpoint")
    assert not list(tmp_path.iterdir())
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_qwen3s_stream_is_saved_where_it_grows_by_copies(tmp_path: Path) -> None:
    hf = hugging_face()
    model = grown(
        lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**SMALL, head_dim=4)),
        lambda m: m.expand({"model.embed_tokens": 16}, initializer="duplicate"),
    )
    config = splitgrow.save_pretrained(model, tmp_path)
    assert (config.hidden_size, config.rms_norm_eps) == (32, 1e-6)
    again = hf.Qwen3ForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    assert_equal(again(IDS).logits, model(IDS).logits)


def test_an_earlier_generation_is_saved_as_it_was(tmp_path: Path) -> None:
    model = growable(llama)
    before = model(IDS).logits
    model.insert_layer("model.layers.0", "block")
    model.expand(all_of(model, "up_proj"))
    config = splitgrow.save_pretrained(model, tmp_path, generation=0)
    assert (config.num_hidden_layers, config.intermediate_size) == (2, 24)
    again = hugging_face().LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    assert_equal(again(IDS).logits, before)


def test_a_model_that_has_not_grown_is_saved_as_its_library_does(tmp_path: Path) -> None:
    model = growable(llama)
    splitgrow.save_pretrained(model, tmp_path / "ours")
    model.save_pretrained(tmp_path / "theirs")
    ours, theirs = (
        json.loads((tmp_path / n / "config.json").read_text()) for n in ("ours", "theirs")
    )
    assert ours == theirs


def test_options_go_to_the_models_own_method_and_other_files_stay(tmp_path: Path) -> None:
    model = grown(llama, lambda m: m.expand_vocabulary(3))
    (tmp_path / "tokenizer.json").write_text("{}")
    splitgrow.save_pretrained(model, tmp_path, max_shard_size="5KB")
    names = {file.name for file in tmp_path.iterdir()}
    assert {"tokenizer.json", "config.json", "model.safetensors.index.json"} <= names
    assert "generation_config.json" in names
    again = hugging_face().LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    assert_equal(again(IDS).logits, model(IDS).logits)


def test_labels_keep_their_names_and_single_precision_is_saved_as_such(tmp_path: Path) -> None:
    model = bert()
    model.config.id2label = {0: "no", 1: "maybe", 2: "yes"}
    model = splitgrow.growable(model.eval(), IDS)
    model.expand_layer("classifier", 1)
    config = splitgrow.save_pretrained(model, tmp_path)
    assert config.id2label == {0: "no", 1: "maybe", 2: "yes", 3: "LABEL_3"}
    again = hugging_face().BertForSequenceClassification.from_pretrained(tmp_path).eval()
    assert next(again.parameters()).dtype == torch.float32
    assert_equal(again(IDS).logits, model(IDS).logits)


def test_other_models_and_options_are_refused_in_words(tmp_path: Path) -> None:
    plain: Any = splitgrow.growable(
        nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), torch.ones(1, 2)
    )
    with pytest.raises(TypeError, match="models of transformers"):
        splitgrow.save_pretrained(plain, tmp_path)
    with pytest.raises(splitgrow.SplitGrowError, match="growable"):
        splitgrow.save_pretrained(llama(), tmp_path)
    with pytest.raises(TypeError, match="push_to_hub"):
        splitgrow.save_pretrained(growable(llama), tmp_path, push_to_hub=True)
    with pytest.raises(ValueError, match="no generation 3"):
        splitgrow.save_pretrained(growable(llama), tmp_path, generation=3)
    assert not list(tmp_path.iterdir())


# -- the model's own save_pretrained ---------------------------------------------------------------


@pytest.mark.parametrize(
    "grow",
    [
        lambda m: m.expand(all_of(m, "up_proj")),
        lambda m: m.insert_layer("model.layers.0", "block"),
        lambda m: m.insert_layer("model.layers.0.mlp", "residual"),
        everything,
    ],
    ids=["width", "depth", "residual", "everything"],
)
@pytest.mark.parametrize("make", [llama, tied])
def test_the_models_own_save_pretrained_never_makes_another_network(
    make: Callable[[], Any], grow: Callable[[Any], Any], tmp_path: Path
) -> None:
    from safetensors.torch import load_file  # noqa: PLC0415

    model = grown(make, grow)
    with pytest.raises(ExportError, match=r"splitgrow.save_pretrained\(model, directory\)"):
        model.save_pretrained(tmp_path)
    with pytest.raises(ExportError, match="its own push_to_hub"):
        model.push_to_hub("someone/something")
    assert not list(tmp_path.iterdir())
    # A trainer passes the state_dict: what it saves has the history, and is no plain model's.
    model.save_pretrained(tmp_path, state_dict=model.state_dict())
    with pytest.raises(RuntimeError, match="mismatched"):
        type(make()).from_pretrained(tmp_path)
    fresh = growable(make)
    fresh.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    assert_identical(fresh(IDS).logits, model(IDS).logits)
    assert len(splitgrow.handle(fresh).edits) == len(splitgrow.handle(model).edits)


def test_before_it_grows_it_saves_as_ever(tmp_path: Path) -> None:
    model = growable(llama)
    model.save_pretrained(tmp_path)
    again = hugging_face().LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    assert_equal(again(IDS).logits, model(IDS).logits)


def test_control_the_values_count(tmp_path: Path) -> None:
    model = grown(llama, lambda m: m.expand(all_of(m, "up_proj")))
    splitgrow.save_pretrained(model, tmp_path)
    again = hugging_face().LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    with torch.no_grad():
        next(iter(again.model.layers)).mlp.up_proj.weight[-1] += 0.1
    assert (again(IDS).logits - model(IDS).logits).abs().max() > 1e-6


def test_hidden_units_of_experts_grow_and_are_saved(tmp_path: Path) -> None:
    """In the library's own way to run experts, which knows no double precision."""
    hf = hugging_face()
    torch.manual_seed(0)
    config = hf.MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2)
    model = splitgrow.growable(hf.MixtralForCausalLM(config).eval(), (IDS,))
    before = model(IDS).logits
    model.expand({each.name: 16 for each in model.layers if "experts" in each.name})
    assert (model(IDS).logits - before).abs().max() <= 1e-5 * before.abs().max()
    model.expand_experts(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter)) if parameter.requires_grad else None
    now = model(IDS).logits
    assert splitgrow.save_pretrained(model, tmp_path / "grown").intermediate_size == 32
    again = hf.MixtralForCausalLM.from_pretrained(tmp_path / "grown").eval()
    assert (again(IDS).logits - now).abs().max() <= 1e-5 * now.abs().max()
