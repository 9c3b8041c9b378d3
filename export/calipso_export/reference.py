"""The classifier in eager PyTorch, by the published formulas: what every exported file is held against.

The image, or each depth map of a point cloud, goes through open_clip's own forward, and each head is the formula of
its paper, over the same text features and keys as the graph; those are checked by `head_checks`.
"""

import dataclasses

import torch
from torch.nn import functional

from calipso_export.heads import calip, calip_fs, zero_shot
from calipso_export.heads.calip import CalipParameters
from calipso_export.heads.few_shot import FewShotHead
from calipso_export.models import LoadedModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadTensors:
    """What the heads are made of.

    Attributes:
        text: float32 [K,D], L2-normalised.
        few_shot: the fitted few-shot head, or None.
        calip: b2 and b3, or None.
        layers: float32 [4,D,D], what was learned for CALIP's attention, or None.
        temperature: what logits are divided by before they become probabilities.
        centred: whether CALIP's first term goes without what is common to all classes, as it does below fp32.
    """

    text: torch.Tensor
    few_shot: FewShotHead | None = None
    calip: CalipParameters | None = None
    layers: torch.Tensor | None = None
    centred: bool = False
    temperature: float = 1.0


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

    @torch.no_grad()
    def __call__(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Classify what the graph takes: float32 [B,3,H,W], normalised, or points [B,P,3].

        Returns:
            logits [B,K], probabilities [B,K], the L2-normalised embedding [B,D] and, where they are asked
            for, the L2-normalised tokens [B,P,D]; all float32.
        """
        model, heads = self.model, self.heads
        image = model.front_end.eager_images(image)
        embedding = functional.normalize(model.front_end.eager_feature(model.encode_image(image)), dim=-1)
        answers = {"embedding": embedding}
        logits = zero_shot.reference(embedding, heads.text, scale=model.scale, bias=model.bias)
        if self._with_tokens:
            # open_clip has no forward that gives them in the joint space: the tower's reference does.
            tokens = functional.normalize(model.tokens(image), dim=-1)
            tokens = tokens.reshape(len(embedding), -1, tokens.shape[-1])
            answers["tokens"] = tokens
            if heads.calip is not None:
                logits = logits + _calip(heads, heads.calip, embedding, tokens, model.scale)
        if heads.few_shot is not None:
            logits = logits + heads.few_shot(embedding, heads.text, model.scale)
        return {**answers, "logits": logits, "probabilities": (logits / heads.temperature).softmax(dim=-1)}


def _calip(
    heads: HeadTensors, parameters: CalipParameters, embedding: torch.Tensor, tokens: torch.Tensor, scale: float
) -> torch.Tensor:
    """What CALIP adds, with its layers where it has any."""
    # In double: the first term is a large number common to all classes, whose rounding in the reference would count as
    # the file's.
    given = (embedding.double(), tokens.double(), heads.text.double())
    if heads.layers is None:
        return calip.reference(*given, parameters, scale=scale, centred=heads.centred).float()
    layers = heads.layers.double()
    return calip_fs.reference(*given, layers, parameters, scale=scale, centred=heads.centred).float()
