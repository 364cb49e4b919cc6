"""Settings for all tests."""

from __future__ import annotations

import os

import kernels
import torch

from splitgrow.analysis.ops import registry

# The models are tiny: handing their work to other threads takes longer than doing it.
torch.set_num_threads(1)

# The laws hold on any processor's kernels (tests/kernels.py).
kernels.choose()

# Tests are run by processes that are told the width of a terminal which they do not have.
os.environ.pop("COLUMNS", None)

# What a rule runs into is a fault of the rule, which users are spared: they find the layer fixed.
registry.STRICT = True
