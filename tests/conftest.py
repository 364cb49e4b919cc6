"""Settings for all tests."""

from __future__ import annotations

import torch

# The models are tiny: handing their work to other threads takes longer than doing it.
torch.set_num_threads(1)
