"""The names that the code on a page takes for granted: a model, an optimizer, some data."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import splitgrow
import splitgrow.continual
import splitgrow.grower
from benchmarks.vision import torchvision

LIBRARIES = {"checkpoints.md", "hugging_face.md", "transformers.md"}
LIBRARIES |= {"tools/accelerate.md", "tools/lightning.md", "tools/timm.md"}
"""Pages whose code needs the packages of benchmarks/requirements.txt."""


class Block(nn.Module):
    """A basic block of a ResNet."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.downsample = nn.Conv2d(inputs, width, 1) if inputs != width else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """Stages of two blocks, with the names of torchvision's."""

    def __init__(self, width: int = 8, stages: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        widths = [width, width, *[2 * width] * (stages - 1)]
        self.stages = [f"layer{stage}" for stage in range(1, stages + 1)]
        for name, inputs, width in zip(self.stages, widths, widths[1:], strict=False):
            setattr(self, name, nn.Sequential(Block(inputs, width), Block(width, width)))
        self.fc = nn.Linear(widths[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for name in self.stages:
            x = getattr(self, name)(x)
        return self.fc(x.mean((2, 3)))


class Net(nn.Module):
    """A perceptron with names."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x).relu())


class Head(nn.Module):
    """A classifier in the place of torchvision's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 9, stride=56), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).relu().flatten(1))


def _resnet(*, growable: bool, size: int = 8, **options: int) -> dict[str, Any]:
    model: Any = ResNet(**options).eval()
    x, y = torch.randn(4, 3, size, size), torch.arange(4)
    optimizer = torch.optim.AdamW(model.parameters())
    if growable:
        model = splitgrow.growable(model, x)
    names = {"model": model, "optimizer": optimizer, "example_inputs": x, "x": x, "y": y}
    return {**names, "images": x, "batches": [(x, y)], "train": lambda *_: None}


def _continual() -> Iterator[dict[str, Any]]:
    images, labels = torch.randn(12, 3, 224, 224), torch.arange(12) % 2
    tasks = [(name, 2, (images, labels), (images, labels)) for name in ("birds", "fish")]
    stub = SimpleNamespace(models=SimpleNamespace(resnet18=Head))
    yield {"torchvision": stub, "my_tasks": tasks, "images": images}


def _policies() -> Iterator[dict[str, Any]]:
    def network() -> nn.Module:
        return nn.Sequential(nn.Linear(8, 256), nn.ReLU(), nn.Linear(256, 256), nn.Linear(256, 4))

    x, y = torch.randn(4, 8), torch.arange(4)
    names: dict[str, Any] = {"network": network, "example_inputs": x, "batches": [(x, y)] * 2}
    yield {**names, "loss": F.cross_entropy, "is_night": lambda: True}


def _perceptron() -> Iterator[dict[str, Any]]:
    x, y = torch.randn(8, 8), torch.arange(8) % 4
    model = splitgrow.growable(Net(), x)
    yield {"model": model, "x": x, "y": y, "x_val": x, "y_val": y, "F": F}


def _checkpoints() -> Iterator[dict[str, Any]]:
    x = torch.randn(2, 8)
    model: Any = splitgrow.growable(Net(), x)
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10)
    model.expand_layer("fc1", 4, optimizer=optimizer)
    names: dict[str, Any] = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    yield {**names, "epoch": 1, "x": x, "Net": Net}


def _processes() -> Iterator[dict[str, Any]]:
    def network() -> nn.Module:
        layers = [("layer1", nn.Linear(8, 16)), ("relu", nn.ReLU()), ("layer2", nn.Linear(16, 4))]
        return nn.Sequential(OrderedDict(layers))

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    x, y = torch.randn(4, 8), torch.arange(4)
    names: dict[str, Any] = {"network": network, "example_inputs": x, "own_batches": [(x, y)]}
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        yield {
            **names,
            "loss": loss,
            "train": lambda *_: None,
            "DistributedDataParallel": DistributedDataParallel,
        }
    finally:
        torch.distributed.destroy_process_group()


def _pruning() -> Iterator[dict[str, Any]]:
    yield {**_resnet(growable=False, size=4, stages=3), "cross_entropy": F.cross_entropy}


def _training() -> Iterator[dict[str, Any]]:
    names: dict[str, Any] = {
        **_resnet(growable=True),
        "net": Net(),
        "example_inputs": torch.ones(1, 8),
    }
    yield {**names, "AveragedModel": AveragedModel, "get_ema_multi_avg_fn": get_ema_multi_avg_fn}


def _llama(layers: int = 2) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415

    sizes = {"hidden_size": 16, "intermediate_size": 32, "vocab_size": 64}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, **sizes, **heads))


def _hugging_face() -> Iterator[dict[str, Any]]:
    from transformers import TrainingArguments  # noqa: PLC0415

    _llama(8).save_pretrained("mine")
    ids = torch.arange(8)[None]
    data = [{"input_ids": ids[0], "labels": ids[0]}] * 2
    args = TrainingArguments("out", max_steps=1, report_to=[], use_cpu=True, disable_tqdm=True)
    yield {"input_ids": ids, "args": args, "data": data, "train": lambda *_: None}


def _transformers() -> Iterator[dict[str, Any]]:
    from transformers import GPT2Config, GPT2LMHeadModel  # noqa: PLC0415

    config = GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2)
    yield {
        "model": GPT2LMHeadModel(config).eval(),
        "dense": _llama().eval(),
        "input_ids": torch.arange(8)[None],
    }


def _of_resnet(**options: Any) -> Callable[[], Iterator[dict[str, Any]]]:
    def setup() -> Iterator[dict[str, Any]]:
        yield _resnet(**options)

    return setup


SETUPS: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
    "checkpoints.md": _checkpoints,
    "classes.md": _of_resnet(growable=True, size=32),
    "continual.md": _continual,
    "growing.md": _of_resnet(growable=False),
    "hugging_face.md": _hugging_face,
    "initializers.md": _perceptron,
    "insertion.md": _of_resnet(growable=True),
    "policies.md": _policies,
    "processes.md": _processes,
    "pruning.md": _pruning,
    "training.md": _training,
    "transformers.md": _transformers,
}


@contextmanager
def names_for(page: str) -> Iterator[dict[str, Any]]:
    """The names that a page's code begins with; a page without a setup imports all it needs."""
    if page in LIBRARIES:
        torchvision()  # lightning and transformers import it
    if page not in SETUPS:
        yield {"__name__": "page"}
        return
    names = {"__name__": "page", "torch": torch, "nn": nn, "splitgrow": splitgrow}
    with contextmanager(SETUPS[page])() as more:
        yield {**names, **more}


def public_names() -> set[str]:
    """Everything that a user may import by a documented name."""
    parts = [splitgrow, splitgrow.continual, splitgrow.distributed, splitgrow.grower]
    parts += [splitgrow.scores, splitgrow.pruning]
    names = {name for part in parts for name in part.__all__}
    errors = {name for name in names if name.endswith(("Error", "Warning"))}
    tables = {name for name in names if name.isupper() and not inspect.isclass(name)}
    methods = {learner.__name__ for learner in splitgrow.continual.METHODS.values()}
    return (names - errors - tables) | methods
