"""open_clip, timm and torchvision's transforms, imported in one place, after what lets them import beside any torch.

open_clip imports transformers wherever that is installed, which takes as long as open_clip itself, and which only text
towers of Hugging Face need: those ask for it with `with_transformers`.
"""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from calipso_export.torchvision_ops import ensure_torchvision_imports
from calipso_runtime.errors import ModelError

_NAMES = ("AutoConfig", "AutoModel", "AutoTokenizer", "PretrainedConfig")
_OUTPUTS = ("BaseModelOutput", "BaseModelOutputWithPooling", "BaseModelOutputWithPoolingAndCrossAttentions")


@contextlib.contextmanager
def _without_transformers() -> Iterator[None]:
    if "transformers" in sys.modules:
        yield
        return
    sys.modules["transformers"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["transformers"]


ensure_torchvision_imports()

with _without_transformers():
    import open_clip
import timm  # noqa: E402  torchvision's schemas first
from torchvision import transforms  # noqa: E402

__all__ = ["open_clip", "timm", "transforms", "with_transformers"]


def with_transformers(what: str) -> Any:
    """Give open_clip what it left out: the package transformers.

    Args:
        what: what needs it, for the message.

    Raises:
        ModelError: it is not installed.
    """
    try:
        import transformers
        from transformers import modeling_outputs
    except ImportError as error:
        message = f"{what} needs transformers, which cannot be imported ({error}): pip install 'calipso[hf]'"
        raise ModelError(message) from error
    module = open_clip.hf_model
    if module.transformers is None:
        names = {name: getattr(transformers, name) for name in _NAMES}
        outputs = {name: getattr(modeling_outputs, name) for name in _OUTPUTS}
        vars(module).update(transformers=transformers, **names, **outputs)
    return transformers
