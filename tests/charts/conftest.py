"""The charts with their dependencies, once."""

from __future__ import annotations

import pytest

from tests.charts.tools import Charts, charts_or_skip


@pytest.fixture(scope="session")
def charts(tmp_path_factory: pytest.TempPathFactory) -> Charts:
    """Skips where helm cannot be had."""
    return charts_or_skip(tmp_path_factory.mktemp("helm"))
