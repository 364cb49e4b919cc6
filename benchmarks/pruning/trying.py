"""One model in a process of its own: pruned by splitgrow, then by torch-pruning."""

from __future__ import annotations

import copy
import os
import resource
import signal
import warnings
from dataclasses import replace
from multiprocessing.connection import Connection

import torch
from torch import nn

from benchmarks.coverage.catalogues import Subject, find
from benchmarks.coverage.findings import described
from benchmarks.coverage.outputs import shapes_of
from benchmarks.coverage.preparing import (
    SMALL,
    Prepared,
    count_parameters,
    defaulting_to,
    prepare_in,
    prepare_values,
)
from benchmarks.pruning import ours, theirs
from benchmarks.pruning.records import Record
from benchmarks.pruning.steps import count, gradients, layers_of

MEMORY = 16 * 2**30
"""Bytes that a model's process may take."""


def examine(library: str, name: str, peer: bool, messages: Connection) -> None:  # noqa: FBT001
    """Runs in a model's process; tells what is found so far before each part."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one sees to it
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(silence, stream)
    torch.set_num_threads(1)
    subject = without_cache(find(library, name))
    record = Record(name, subject.family)
    messages.send(("build", record.as_dict()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prune_by_us(subject, record)
        if peer and record.ours.status != "not run":
            messages.send(("peer", record.as_dict()))
            prune_by_them(subject, record)
    messages.send(("done", record.as_dict()))


def without_cache(subject: Subject) -> Subject:
    """The same model without a memory, such as of keys and values, among its outputs."""

    def build() -> nn.Module:
        model = subject.build()
        for module in model.modules():
            config = getattr(module, "config", None)
            for name in ("use_cache", "use_mems_eval"):
                if getattr(config, name, None):
                    setattr(config, name, False)
        return model

    return replace(subject, build=build) if subject.library == "transformers" else subject


def fed(subject: Subject, record: Record) -> Prepared:
    """A model in real values: in double precision if it is small and runs in that."""
    size = count_parameters(subject)
    record.notes = []
    if size is not None and size >= SMALL:
        return prepare_in(subject, record, torch.float32)
    return prepare_values(subject, record)


def trained(subject: Subject, prepared: Prepared, record: Record) -> frozenset[str] | None:
    """The parameters that a training step reaches; None if the plain model does not train here."""
    try:
        model = copy.deepcopy(prepared.model)
        return gradients(model, prepared.inputs, detects=subject.detects)
    except Exception as error:  # noqa: BLE001  then training is not compared
        record.notes.append(f"does not train here: {described(error)}")
        return None


def prune_by_us(subject: Subject, record: Record) -> None:
    """Fills in `ours`, and what is known of the model."""
    try:
        prepared = fed(subject, record)
    except Exception as error:  # noqa: BLE001  what goes wrong is what is looked for
        record.ours.conclude("not run", described(error))
        record.peer.conclude("not run")
        return
    dtype = prepared.dtype or torch.get_default_dtype()
    record.parameters = count(prepared.model)
    record.layers = len(layers_of(prepared.model))
    record.values, record.inputs = str(dtype).split(".")[1], shapes_of(prepared.inputs)
    with defaulting_to(dtype):
        used = trained(subject, prepared, record)
        try:
            ours.prune(subject, prepared, used, record)
        except Exception as error:  # noqa: BLE001  what goes wrong is what is looked for
            record.ours.conclude("fails", f"in {record.ours.step}: {described(error)}")


def prune_by_them(subject: Subject, record: Record) -> None:
    """Fills in `peer`, from a model of the same values."""
    prepared = fed(subject, Record(subject.name))
    with defaulting_to(prepared.dtype or torch.get_default_dtype()):
        used = trained(subject, prepared, Record(subject.name))
        theirs.prune(subject, prepared, used, record)
