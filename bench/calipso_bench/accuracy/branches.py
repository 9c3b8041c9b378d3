"""The eager side with and without its branches, all from one pass through the tower."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from calipso_export.heads import calip, zero_shot
from calipso_export.photos import opened
from calipso_export.rebuild import Rebuilt

ZERO_SHOT = "zero-shot"
WITH_CALIP = "+ CALIP"
WITH_BOTH = "+ both"


class Branches:
    """open_clip's own tower and transform, and the published formula of each head.

    Args:
        rebuilt: the eager side of a bundle.

    Attributes:
        names: the branches that this bundle's heads make, simplest first; the last is the whole classifier.
    """

    def __init__(self, rebuilt: Rebuilt) -> None:
        self._model = rebuilt.model
        self._heads = heads = rebuilt.heads
        self.names = [ZERO_SHOT]
        self.names += [WITH_CALIP] if heads.calip is not None else []
        self.with_few_shot = "" if heads.few_shot is None else f"+ {heads.few_shot.title}"
        self.names += [self.with_few_shot] if heads.few_shot is not None else []
        self.names += [WITH_BOTH] if heads.calip is not None and heads.few_shot is not None else []

    @torch.inference_mode()
    def logits(self, paths: Sequence[Path]) -> dict[str, npt.NDArray[np.float32]]:
        """Each branch's logits, float32 [N,K], of pictures that can be decoded."""
        model, heads = self._model, self._heads
        image = torch.stack([self._transformed(path) for path in paths])
        embedding = functional.normalize(model.encode_image(image), dim=-1)
        plain = zero_shot.reference(embedding, heads.text, scale=model.scale, bias=model.bias)
        found = {ZERO_SHOT: plain}
        if heads.calip is not None:
            tokens = functional.normalize(model.tokens(image), dim=-1)
            attended = calip.reference(
                embedding, tokens, heads.text, heads.calip, scale=model.scale, centred=heads.centred
            )
            found[WITH_CALIP] = plain + attended
        if heads.few_shot is not None:
            added = heads.few_shot(embedding, heads.text, model.scale)
            found[self.with_few_shot] = plain + added
            if heads.calip is not None:
                found[WITH_BOTH] = found[WITH_CALIP] + added
        return {name: values.numpy() for name, values in found.items()}

    def _transformed(self, path: Path) -> torch.Tensor:
        with opened(path) as image:
            return self._model.transform(image)  # type: ignore[no-any-return]


@contextlib.contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Torch's number of threads belongs to the whole process: it comes back afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
