"""The digits that come with scikit-learn, which the commands use if they are given no data."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from splitgrow.demos.rawdata import RawData, array_split


def read(seed: int) -> RawData:
    """1,797 grey images of 8x8 pixels; a fifth of them, with the classes in proportion, to test."""
    bunch = load_digits()
    train, test = train_test_split(
        np.arange(len(bunch.target)), test_size=0.2, random_state=seed, stratify=bunch.target
    )
    images = bunch.images[:, None]
    return RawData(
        array_split("digits", images[train], bunch.target[train]),
        array_split("digits", images[test], bunch.target[test]),
    )
