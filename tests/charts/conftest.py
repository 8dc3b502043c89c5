"""The charts with their dependencies, once."""

from __future__ import annotations

import pytest

from tests.charts.tools import Charts, NoHelm, helm


@pytest.fixture(scope="session")
def charts(tmp_path_factory: pytest.TempPathFactory) -> Charts:
    """Skips where helm cannot be had."""
    try:
        helm()
    except NoHelm as error:
        pytest.skip(str(error))
    return Charts(tmp_path_factory.mktemp("helm"))
