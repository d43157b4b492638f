"""What the tests of whole programs share."""

from __future__ import annotations

import pytest

from tests.support.jobs import Jobs, make_jobs
from tests.support.program import Program


@pytest.fixture(scope="module")
def jobs(program: Program, tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    """The conversions that are tried; their results were made without a fault."""
    return make_jobs(tmp_path_factory.mktemp("jobs"), program)
