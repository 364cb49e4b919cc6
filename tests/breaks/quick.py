"""A pytest plugin for tests that are run to fail: hypothesis does not simplify its examples."""

from __future__ import annotations

from hypothesis import Phase, settings


def pytest_configure() -> None:
    """Chooses a profile in which it looks for a failure only."""
    settings.register_profile("breaks", phases=[Phase.explicit, Phase.generate], database=None)
    settings.load_profile("breaks")
