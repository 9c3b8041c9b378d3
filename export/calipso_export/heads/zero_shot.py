"""Zero-shot classification: the scaled cosine between the image and every class's text.

Source: openai/CLIP; mlfoundations/open_clip. `logits = s f T' + b`.
"""

import torch
from torch import nn


class ZeroShotHead(nn.Module):
    """One MatMul: the scale is folded into the text weights.

    Args:
        text: float32 [K,D], L2-normalised text features of the classes.
        scale: the checkpoint's exp(logit_scale).
        bias: the checkpoint's logit bias, 0 where it has none.
    """

    def __init__(self, text: torch.Tensor, *, scale: float, bias: float = 0.0) -> None:
        super().__init__()
        # [D,K]: the way the MatMul reads it, so that the file holds it once.
        self.weight = nn.Parameter((scale * text).T.contiguous(), requires_grad=False)
        self.bias = bias

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """L2-normalised features float32 [B,D] -> logits float32 [B,K]."""
        logits = image @ self.weight
        return logits + self.bias if self.bias else logits


def reference(image: torch.Tensor, text: torch.Tensor, *, scale: float, bias: float = 0.0) -> torch.Tensor:
    """The formula as published: [B,D] and [K,D] -> [B,K]."""
    return scale * image @ text.T + bias
