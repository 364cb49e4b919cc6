"""Growth in the Trainer of transformers."""

from __future__ import annotations

import doctest
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import assert_equal
from torch import Tensor, nn

import splitgrow
from benchmarks.vision import torchvision

pytestmark = [pytest.mark.zoo, pytest.mark.filterwarnings("ignore")]


def integration() -> Any:
    torchvision()
    from splitgrow.integrations import transformers  # noqa: PLC0415

    return transformers


def llama(layers: int = 2) -> Any:
    integration()
    import transformers as hf  # noqa: PLC0415

    hf.logging.set_verbosity_error()
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
    )
    return hf.LlamaForCausalLM(config)


class Words(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(index)
        ids = torch.randint(1, 32, (9,), generator=generator)
        return {"input_ids": ids, "labels": ids}


def growable(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return splitgrow.growable(llama(), Words()[0]["input_ids"][None])


def trainer(model: Any, folder: Path, growths: Any, **changes: Any) -> Any:
    import transformers as hf  # noqa: PLC0415

    ours = integration()

    class Growing(ours.GrowingTrainerMixin, hf.Trainer):
        pass

    options = {
        "output_dir": str(folder),
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "save_steps": 1,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_steps": 100,
        **changes,
    }
    return Growing(
        model=model,
        args=hf.TrainingArguments(**options),
        train_dataset=Words(),
        callbacks=[ours.GrowthCallback(growths, freeze=False)],
    )


def widen(model: Any, optimizer: Any) -> None:
    request = {layer.name: 8 for layer in model.layers if layer.name.endswith("up_proj")}
    model.expand(request, freeze=False, optimizer=optimizer)


def deepen(model: Any, optimizer: Any) -> None:
    model.insert_layer("model.layers.0", "block", freeze=False, optimizer=optimizer)


GROWTHS = {2: widen, 3: deepen}


def test_it_grows_at_its_steps_and_what_is_saved_in_the_end_is_read_by_from_pretrained(
    tmp_path: Path,
) -> None:
    model = growable()
    run = trainer(model, tmp_path / "run", GROWTHS)
    run.train()
    assert [edit.index for edit in splitgrow.handle(model).edits] == [1, 2]
    run.save_model(str(tmp_path / "final"))
    again = type(llama()).from_pretrained(tmp_path / "final").eval()
    assert (again.config.num_hidden_layers, again.config.intermediate_size) == (3, 32)
    ids = Words()[1]["input_ids"][None]
    assert_equal(again(ids).logits, model.eval()(ids).logits)


def test_a_resumed_run_ends_in_the_same_bits_and_does_not_grow_twice(tmp_path: Path) -> None:
    whole = growable()
    trainer(whole, tmp_path / "whole", GROWTHS).train()
    for step in (2, 4):
        resumed = growable(seed=9)
        run = trainer(resumed, tmp_path / "other", GROWTHS)
        run.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert len(splitgrow.handle(resumed).edits) == 2
        ours, theirs = dict(resumed.named_parameters()), dict(whole.named_parameters())
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_checkpoint_of_the_run_is_not_taken_for_a_plain_model(tmp_path: Path) -> None:
    trainer(growable(), tmp_path, GROWTHS).train()
    with pytest.raises(RuntimeError, match="mismatched"):
        type(llama()).from_pretrained(tmp_path / "checkpoint-6")


def test_requests_grow_as_expand_does(tmp_path: Path) -> None:
    model = growable()
    trainer(model, tmp_path, {2: {"model.layers.1.mlp.up_proj": 5}}).train()
    assert model.get_submodule("model.layers.1.mlp.up_proj").out_features == 29
    assert all(p.requires_grad for p in model.parameters())


def test_a_model_that_is_not_growable_is_refused_before_it_trains(tmp_path: Path) -> None:
    with pytest.raises(splitgrow.UnsupportedModelError, match="no part of the LlamaForCausalLM"):
        trainer(llama(), tmp_path, {2: {"x": 1}}).train()


def test_deepspeed_is_refused_with_the_way_out() -> None:
    callback = integration().GrowthCallback({2: {"x": 1}})
    arguments, state = SimpleNamespace(deepspeed="zero3.json"), SimpleNamespace(global_step=0)
    with pytest.raises(splitgrow.UnsupportedModelError, match=r"splitgrow\.distributed"):
        callback.on_train_begin(arguments, state, None, model=nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("growths", "error"),
    [
        ({0: {"x": 1}}, ValueError),
        ({"2": {"x": 1}}, TypeError),
        ({True: {"x": 1}}, TypeError),
        ({2: 5}, TypeError),
    ],
)
def test_growths_of_other_kinds_are_refused(growths: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="growth"):
        integration().GrowthCallback(growths)


def test_growth_that_fails_ends_the_run_and_leaves_the_model_as_it_is(tmp_path: Path) -> None:
    model = growable()
    with pytest.raises(ValueError, match="no layer 'nowhere'"):
        trainer(model, tmp_path, {2: {"nowhere": 1}}).train()
    assert not splitgrow.handle(model).edits


def test_a_model_that_has_not_grown_is_saved_as_ever(tmp_path: Path) -> None:
    model = growable()
    run = trainer(model, tmp_path / "run", {})
    run.save_model(str(tmp_path / "final"))
    again = type(llama()).from_pretrained(tmp_path / "final").eval()
    ids = Words()[1]["input_ids"][None]
    assert_equal(again(ids).logits, model.eval()(ids).logits)


def test_its_examples_run() -> None:
    module = integration()
    assert doctest.testmod(sys.modules[module.__name__]).failed == 0
    assert doctest.testmod(sys.modules[module.__name__]).attempted > 5


def mixtral(seed: int = 0) -> Any:
    """A mixture whose router's scores, collected by hooks of the library, are in the loss."""
    integration()
    import transformers as hf  # noqa: PLC0415

    hf.logging.set_verbosity_error()
    torch.manual_seed(0)
    config = hf.MixtralConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        output_router_logits=True,
        pad_token_id=0,
    )
    model = hf.MixtralForCausalLM(config)
    torch.manual_seed(seed)
    return splitgrow.growable(model, Words()[0]["input_ids"][None])


def more_experts(model: Any, optimizer: Any) -> None:
    model.expand_experts(4, freeze=False, optimizer=optimizer)


def wider_experts(model: Any, optimizer: Any) -> None:
    request = {layer.name: 16 for layer in model.layers if "experts" in layer.name}
    model.expand(request, freeze=False, optimizer=optimizer)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_mixture_grows_in_a_run_and_a_resumed_one_ends_in_the_same_bits(
    tmp_path: Path, checkpointing: bool
) -> None:
    import transformers as hf  # noqa: PLC0415

    growths = {2: more_experts, 3: wider_experts}
    options = {"gradient_checkpointing": checkpointing}
    whole, resumed = mixtral(), mixtral(seed=9)
    trainer(whole, tmp_path / "run", growths, **options).train()
    run = trainer(resumed, tmp_path / "run", growths, **options)
    run.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    assert len(splitgrow.handle(resumed).edits) == 2
    for name, tensor in whole.state_dict().items():
        if isinstance(tensor, Tensor):
            assert torch.equal(tensor, resumed.state_dict()[name]), name
    run.save_model(str(tmp_path / "final"))
    again = hf.MixtralForCausalLM.from_pretrained(tmp_path / "final").eval()
    config = again.config
    assert (config.num_local_experts, config.num_experts_per_tok) == (8, 4)
    assert config.intermediate_size == 32
    ids = Words()[1]["input_ids"][None]
    assert (again(ids).logits - resumed.eval()(ids).logits).abs().max() < 1e-5


def test_a_balancing_loss_counts_the_experts_of_today_and_of_earlier_generations() -> None:
    model = mixtral().eval()
    ids = Words()[1]["input_ids"][None]
    before = model(ids, labels=ids)
    model.expand_experts(4)
    now = model(ids, labels=ids)
    assert (now.logits - before.logits).abs().max() < 1e-5
    # Of E experts with shares p and rates f the loss is E * sum(f * p): twice as large for twins.
    assert float(now.aux_loss) == pytest.approx(2 * float(before.aux_loss), rel=1e-4)
    with model.at(0):
        assert torch.equal(model(ids, labels=ids).aux_loss, before.aux_loss)
    assert torch.isfinite(now.loss)
