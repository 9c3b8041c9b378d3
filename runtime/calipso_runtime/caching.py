"""Where things are kept that can be made again: encoded photos, graphs as an engine optimised them."""

import os
from pathlib import Path

CACHE_VARIABLE = "CALIPSO_CACHE"


def cache_folder() -> Path:
    """$CALIPSO_CACHE, or `calipso` in the user's own cache folder."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "calipso"
