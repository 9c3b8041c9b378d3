"""The classifier in eager PyTorch, by the published formulas: what every exported file is held against.

The image goes through open_clip's own forward, and each head is the formula of its paper, over the
same text features and keys as the graph; those are checked by `head_checks`.
"""

import dataclasses

import torch
from torch.nn import functional

from calipso_export.heads import calip, tip_adapter, zero_shot
from calipso_export.heads.calip import CalipParameters
from calipso_export.heads.tip_adapter import TipAdapterParameters
from calipso_export.models import LoadedModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadTensors:
    """What the heads are made of.

    Attributes:
        text: float32 [K,D], L2-normalised.
        keys: float32 [M,D], L2-normalised, or None without a cache.
        labels: int64 [M], class index of each key.
        calip: b2 and b3, or None.
        tip_adapter: alpha and beta, or None; then keys and labels are ignored.
        centred: whether CALIP's first term goes without what is common to all classes, as it does below fp32.
    """

    text: torch.Tensor
    keys: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    calip: CalipParameters | None = None
    tip_adapter: TipAdapterParameters | None = None
    centred: bool = False


class EagerClassifier:
    """A model and its heads, uncompiled and unfolded.

    Args:
        model: the model.
        heads: what its heads are made of.
        with_tokens: whether the spatial tokens are asked for, with or without CALIP.
    """

    def __init__(self, model: LoadedModel, heads: HeadTensors, *, with_tokens: bool = False) -> None:
        self.model = model
        self.heads = heads
        self._with_tokens = with_tokens or heads.calip is not None
        self._values = None
        if heads.tip_adapter is not None and heads.labels is not None:
            self._values = functional.one_hot(heads.labels, len(heads.text)).float()

    @torch.no_grad()
    def __call__(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Classify float32 [B,3,H,W], normalised.

        Returns:
            logits [B,K], probabilities [B,K], the L2-normalised embedding [B,D] and, where they are asked
            for, the L2-normalised tokens [B,P,D]; all float32.
        """
        model, heads = self.model, self.heads
        embedding = functional.normalize(model.visual(image), dim=-1)
        answers = {"embedding": embedding}
        logits = zero_shot.reference(embedding, heads.text, scale=model.scale, bias=model.bias)
        if self._with_tokens:
            # open_clip has no forward that gives them in the joint space: the tower's reference does.
            tokens = functional.normalize(model.tower.reference(model.visual, image)[1], dim=-1)
            answers["tokens"] = tokens
            if heads.calip is not None:
                # In double: the first term is a large number common to all classes, whose rounding in the
                # reference would count as the file's.
                added = calip.reference(
                    embedding.double(),
                    tokens.double(),
                    heads.text.double(),
                    heads.calip,
                    scale=model.scale,
                    centred=heads.centred,
                )
                logits = logits + added.float()
        if heads.tip_adapter is not None and heads.keys is not None and self._values is not None:
            logits = logits + tip_adapter.reference(embedding, heads.keys, self._values, parameters=heads.tip_adapter)
        return {**answers, "logits": logits, "probabilities": logits.softmax(dim=-1)}
