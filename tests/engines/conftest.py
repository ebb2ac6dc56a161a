"""What several modules here take."""

import pytest

from pxfast.base.checks import PRECISIONS


@pytest.fixture(params=PRECISIONS)
def precision(request: pytest.FixtureRequest) -> str:
    return request.param
