import gc

import pytest


@pytest.fixture(autouse=True, scope="module")
def _what_is_there_already_is_no_garbage():
    """Witnesses and accelerate collect garbage in each test: they need not go through all of it."""
    gc.freeze()
    yield
    gc.unfreeze()
