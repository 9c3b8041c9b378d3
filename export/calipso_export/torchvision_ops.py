"""Lets torchvision import beside a torch build that its compiled operators do not fit.

open_clip imports torchvision for its image transforms, which are pure Python. But torchvision also
registers abstract kernels for its compiled operators at import, and that fails with "operator
torchvision::nms does not exist" where the extension cannot load: PyPI's torchvision is built for
CUDA and does not load beside a CPU-only torch. Declaring the two schemas it looks for is enough.
Where the extension loads, this does nothing.
"""

import importlib.util
from pathlib import Path

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
# A Library removes its registrations when it is collected: keep it as long as the process lives.
_declared: list[torch.library.Library] = []


def native_ops_load() -> bool:
    """Whether torchvision's own compiled operators load into this torch."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    for extension in sorted(Path(spec.origin).parent.glob("_C*.so")) + sorted(Path(spec.origin).parent.glob("_C*.pyd")):
        try:
            torch.ops.load_library(str(extension))  # type: ignore[no-untyped-call]
        except (ImportError, OSError):
            continue
        return True
    return False


def ensure_torchvision_imports() -> bool:
    """Declare torchvision's operator schemas where the compiled ones cannot load.

    Returns:
        True if the schemas were declared by this module, False if nothing had to be done.
    """
    if _declared:
        return True
    if native_ops_load():
        return False
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for schema in _SCHEMAS:
        library.define(schema)  # type: ignore[no-untyped-call]
    _declared.append(library)
    return True
