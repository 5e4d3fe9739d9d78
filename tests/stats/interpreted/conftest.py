import pytest

from numwatch.stats.gpu import group, launch


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    """Tiles of 16 lanes: what a device does at once an interpreter does number by number."""
    for module in (launch, group):
        monkeypatch.setattr(module, "LANES", 16)
