"""Policies in the Trainer of transformers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import splitgrow
from benchmarks.vision import torchvision

pytestmark = [pytest.mark.zoo, pytest.mark.filterwarnings("ignore")]


def integration() -> Any:
    torchvision()
    from splitgrow.integrations import transformers  # noqa: PLC0415

    return transformers


class Words(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> Any:
        ids = torch.randint(1, 32, (9,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": ids, "labels": ids}


def growable(seed: int = 0) -> Any:
    integration()
    import transformers as hf  # noqa: PLC0415

    hf.logging.set_verbosity_error()
    torch.manual_seed(seed)
    config = hf.LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
    )
    return splitgrow.growable(hf.LlamaForCausalLM(config), Words()[0]["input_ids"][None])


def trainer(model: Any, folder: Path, **policy: Any) -> tuple[Any, Any]:
    import transformers as hf  # noqa: PLC0415

    ours = integration()

    class Growing(ours.GrowingTrainerMixin, hf.Trainer):
        pass

    arguments = hf.TrainingArguments(
        output_dir=str(folder),
        max_steps=6,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    data = Words()
    callback = ours.GrowerCallback(to=splitgrow.Factor(1.5), steps=2, absorb=False, **policy)
    run = Growing(
        model=model,
        args=arguments,
        train_dataset=data,
        eval_dataset=torch.utils.data.Subset(data, range(4)),
        callbacks=[callback],
    )
    return run, callback


RULES = {
    "steps": splitgrow.Every(2),
    "metric": splitgrow.Plateau("eval_loss", patience=1, min_delta=10.0),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_resumed_run_grows_by_the_policy_to_the_same_bits(rule: str, tmp_path: Path) -> None:
    whole = growable()
    run, callback = trainer(whole, tmp_path / "whole", when=RULES[rule])
    run.train()
    assert callback.grower.done
    assert len(splitgrow.handle(whole).edits) == 2
    assert {layer.name: layer.width for layer in whole.layers} == dict(
        callback.grower.plan().growths[-1].widths
    )
    resumed = growable(seed=9)
    run, again = trainer(resumed, tmp_path / "other", when=RULES[rule])
    run.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert again.grower.state_dict() == callback.grower.state_dict()
    ours, theirs = dict(resumed.named_parameters()), dict(whole.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_what_it_cannot_grow_is_refused() -> None:
    callback = integration().GrowerCallback(splitgrow.Every(2))
    arguments, state = SimpleNamespace(deepspeed="zero3.json"), SimpleNamespace(global_step=0)
    with pytest.raises(splitgrow.UnsupportedModelError, match=r"splitgrow\.distributed"):
        callback.on_train_begin(arguments, state, None, model=nn.Linear(2, 2))
    with pytest.raises(splitgrow.UnsupportedModelError, match="no part"):
        callback.on_train_begin(SimpleNamespace(), state, None, model=nn.Linear(2, 2))
    with pytest.raises(ValueError, match="restore_callback_states_from_checkpoint"):
        integration().GrowerCallback.from_state({})
