"""open_clip and torchvision's transforms, imported in one place, after what lets them import beside any torch."""

from calipso_export.torchvision_ops import ensure_torchvision_imports

ensure_torchvision_imports()

import open_clip  # noqa: E402  torchvision's schemas first
from torchvision import transforms  # noqa: E402

__all__ = ["open_clip", "transforms"]
