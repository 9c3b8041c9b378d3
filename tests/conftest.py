"""No test touches the user's own cache of encoded photos."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def own_feature_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Point the exporter's default cache folder at a temporary one, in this process and in those it starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CALIPSO_CACHE", str(tmp_path_factory.mktemp("calipso-cache")))
        yield
