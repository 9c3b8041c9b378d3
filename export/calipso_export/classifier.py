"""The modules that are traced: image, or points, in; logits and what else was asked for out."""

from typing import cast

import torch
from torch import nn
from torch.nn import functional

from calipso_export.heads import attribute
from calipso_export.heads.calip import CalipHead
from calipso_export.heads.calip_fs import CalipFsHead
from calipso_export.heads.few_shot import FoldedHead
from calipso_export.heads.inputs import InputHead
from calipso_export.heads.zero_shot import ZeroShotHead
from calipso_export.towers import Tower
from calipso_export.towers.text import TextTower


class ClassifierModule(nn.Module):
    """A vision tower and its heads, as one graph.

    Args:
        tower: image -> (global, tokens).
        zero_shot: the text weights.
        calip: the CALIP terms, or None; needs a tower `with_tokens`.
        few_shot: the few-shot head, or None: its name, which its weights and nodes get in the graph, and its module.
        projection: the input -> images [B*V,3,H,W], or None where the input is one.
        views: (global, tokens) of B*V images -> of the B items, or None where they are the same.
        temperature: what logits are divided by before they become probabilities.
        outputs: names out of `config.OUTPUTS`, in the order the graph gives them.
    """

    def __init__(
        self,
        tower: Tower,
        zero_shot: ZeroShotHead,
        *,
        calip: CalipHead | CalipFsHead | None = None,
        few_shot: tuple[str, FoldedHead] | None = None,
        projection: nn.Module | None = None,
        views: nn.Module | None = None,
        temperature: float = 1.0,
        outputs: tuple[str, ...] = ("logits", "embedding"),
    ) -> None:
        super().__init__()
        self.projection = projection
        self.tower = tower
        self.views = views
        self.zero_shot = zero_shot
        self.calip = calip
        self._few_shot_name = None if few_shot is None else attribute(few_shot[0])
        if few_shot is not None:
            self.add_module(attribute(few_shot[0]), few_shot[1])
        self.temperature = temperature
        self.outputs = outputs

    @property
    def few_shot(self) -> FoldedHead | None:
        """The few-shot head."""
        return None if self._few_shot_name is None else cast("FoldedHead", self.get_submodule(self._few_shot_name))

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """float32 [B,3,H,W], normalised, or what `projection` takes -> what `outputs` names, in that order."""
        pooled, tokens = self.tower(image if self.projection is None else self.projection(image))
        if self.views is not None:
            pooled, tokens = self.views(pooled, tokens)
        embedding = functional.normalize(pooled, dim=-1)
        found = {"embedding": embedding}
        logits = self.zero_shot(embedding)
        if tokens is not None:
            tokens = functional.normalize(tokens, dim=-1)
            found["tokens"] = tokens
            if self.calip is not None:
                logits = logits + self.calip(embedding, tokens, self.zero_shot.weight)
        if self.few_shot is not None:
            logits = logits + self.few_shot(embedding, self.zero_shot.weight)
        found["logits"] = logits
        if "probabilities" in self.outputs:
            found["probabilities"] = _probabilities(logits, self.temperature)
        return tuple(found[name] for name in self.outputs)


class TeachableModule(nn.Module):
    """A vision tower, and a head whose weights are inputs, as one graph.

    Args:
        tower: image -> (global, tokens).
        head: what computes the logits.
        width: D, of the embedding.
        temperature: what logits are divided by before they become probabilities.
        outputs: names out of `config.OUTPUTS`, in the order the graph gives them.
    """

    def __init__(
        self, tower: Tower, head: InputHead, *, width: int, temperature: float = 1.0, outputs: tuple[str, ...]
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.width = width
        self.tower = tower
        self.head = head
        self.outputs = outputs

    def forward(
        self, image: torch.Tensor, text: torch.Tensor, keys: torch.Tensor, offset: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """float32 [B,3,H,W], normalised, and the head -> the tensors named in `outputs`, in that order."""
        pooled, tokens = self.tower(image)
        embedding = functional.normalize(pooled, dim=-1)
        found = {"embedding": embedding, "logits": self.head(embedding, text, keys, offset)}
        if tokens is not None:
            found["tokens"] = functional.normalize(tokens, dim=-1)
        if "probabilities" in self.outputs:
            found["probabilities"] = _probabilities(found["logits"], self.temperature)
        return tuple(found[name] for name in self.outputs)


class OpenModule(nn.Module):
    """Both towers as one graph: pictures and texts in; logits over the texts, and the features of both, out.

    Args:
        tower: image -> (global, tokens).
        tower_text: token ids -> feature.
        scale: the checkpoint's exp(logit_scale).
        bias: its logit bias.
    """

    def __init__(self, tower: Tower, tower_text: TextTower, *, scale: float, bias: float) -> None:
        super().__init__()
        self.tower = tower
        self.tower_text = tower_text
        self.scale = scale
        self.bias = bias

    def forward(self, image: torch.Tensor, token_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """float32 [B,3,H,W], normalised, and int64 [N,L] -> logits [B,N], features [B,D] and [N,D] of length 1."""
        embedding = functional.normalize(self.tower(image)[0], dim=-1)
        text = functional.normalize(self.tower_text(token_ids), dim=-1)
        logits = embedding @ (text * self.scale).T
        # An addition of 0 would stand in the graph.
        return (logits + self.bias if self.bias else logits), embedding, text


def _probabilities(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    # A division by 1 would stand in the graph.
    return (logits if temperature == 1 else logits / temperature).softmax(dim=-1)
