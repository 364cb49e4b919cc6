"""Orthonormal rows of a matrix."""

from __future__ import annotations

import torch
from torch import Tensor


def orthonormal_rows(matrix: Tensor) -> Tensor:
    """Orthonormal rows that span those of a matrix, which has no more rows than columns.

    They come from the QR decomposition, with the signs that make it unique.
    """
    basis, triangle = torch.linalg.qr(matrix.T)
    signs = triangle.diagonal().sign()
    rows: Tensor = (basis * torch.where(signs == 0, 1.0, signs)).T
    return rows
