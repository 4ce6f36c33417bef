"""Results of these tests stay out of the user's cache."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPARKWELL_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"
