"""Timm's models. A family is the timm module that registers a model."""

from __future__ import annotations

from fnmatch import fnmatch
from functools import partial

from torch import nn

from benchmarks.coverage.catalogues import Subject, images
from benchmarks.vision import torchvision

torchvision()  # which timm imports
import timm  # noqa: E402
from timm.models import _registry as registry  # noqa: E402

SIZES = (64, 96, 128)
"""Sides of an image that are tried before the model's own."""

CNN_FAMILIES = frozenset(
    {
        *("byobnet", "convmixer", "convnext", "cspnet", "cspnext", "densenet", "dla", "dpn"),
        *("efficientnet", "fasternet", "focalnet", "ghostnet", "hardcorenas", "hgnet", "hrnet"),
        *("inception_next", "inception_resnet_v2", "inception_v3", "inception_v4", "lcnetv2"),
        *("mambaout", "mobilenetv3", "nasnet", "nfnet", "pnasnet", "rdnet", "regnet", "repghost"),
        *("repvit", "res2net", "resnest", "resnet", "resnetv2", "rexnet", "selecsls", "senet"),
        *("sknet", "starnet", "tresnet", "vgg", "vovnet", "xception", "xception_aligned"),
    }
)
"""Families of convolutional networks without self-attention (gates over channels are allowed)."""

CNN = "CNN classifiers"
"""What convolutional classifiers are tagged with."""

NOT_CNN = ("mobilenetv4_hybrid_*", "resnet*_clip")
"""Models of those families that do have attention, in a stage or in the pooling."""


def names() -> list[str]:
    """The names of all models."""
    return timm.list_models()


def version() -> str:
    """The library's version."""
    return timm.__version__


def totals() -> dict[str, int]:
    """How many models, families and convolutional classifiers there are."""
    return {
        "models": len(names()),
        "families": len({family(name) for name in names()}),
        CNN: sum(map(is_cnn_classifier, names())),
    }


def family(name: str) -> str:
    """The timm module that registers a model."""
    return registry._model_to_module[name]  # noqa: SLF001


def is_cnn_classifier(name: str) -> bool:
    """Whether a model is a convolutional network with a classifier."""
    settings = timm.get_pretrained_cfg(name)
    classes = 1000 if settings is None else settings.num_classes
    special = any(fnmatch(name, pattern) for pattern in NOT_CNN)
    return family(name) in CNN_FAMILIES and not special and classes > 0


def subject(name: str) -> Subject:
    """The model of a name."""
    settings = timm.get_pretrained_cfg(name)
    channels, own = (3, 224) if settings is None else settings.input_size[:2]
    fixed = settings is not None and settings.fixed_input_size
    sizes = (own,) if fixed else (*(size for size in SIZES if size < own), own)
    return Subject(
        library="timm",
        name=name,
        family=family(name),
        build=partial(_build, name),
        samples=images(channels, sizes),
        tags=(CNN,) if is_cnn_classifier(name) else (),
    )


def _build(name: str) -> nn.Module:
    return timm.create_model(name, pretrained=False)
