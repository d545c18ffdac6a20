import pytest

from tests.pages.browser import launched


@pytest.fixture(scope="module")
def browser():
    with launched() as browser:
        yield browser
