"""Every op test runs with poisoned memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fastguide.testing import poisoned


@pytest.fixture(autouse=True)
def _poison() -> Iterator[None]:
    with poisoned():
        yield
