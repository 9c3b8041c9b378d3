"""CALIP: parameter-free attention between the image's positions and the classes' texts.

Source: Guo et al., "CALIP: Zero-Shot Enhancement of CLIP with Parameter-free Attention", AAAI 2023;
released code ZiyuGuo99/CALIP, run_imagenet.py. With f [D] and F [P,D] of one image and T [K,D]:

    A  = F T'                              [P,K]
    Ta = softmax(2A, over positions)' F    [K,D]   text seen through the image
    V  = softmax(2A, over classes) T       [P,D]   image seen through the text
    v  = mean_p V + max_p V                [D]     not renormalised
    logits += b2 s f.Ta' + b3 s v.T'

Two exact shortcuts: `f.Ta_k = sum_p softmax(2A)_pk (F_p.f)`, so that no [K,D] tensor is formed per
image; and 2A is read off the zero-shot weights, so that the text stands in the graph once.

The first term is almost the same for all classes: below fp32 its differences would drown. The centred
form `s sum_p (softmax(2A)_pk - 1/P) (F_p.f)` takes off what is common to all classes, `s mean_p F_p.f`:
probabilities and ranks stay, every logit of a picture is lower by the same number.
"""

import dataclasses

import torch
from torch import nn

# The factor inside both softmaxes of the released code. The published betas belong to another one.
ATTENTION_SCALE = 2.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalipParameters:
    """Weights of the two added terms; the plain zero-shot logits keep weight 1.

    Attributes:
        b2: weight of the text seen through the image.
        b3: weight of the image seen through the text.
    """

    b2: float
    b3: float


class CalipHead(nn.Module):
    """The two added terms, or either alone, over a zero-shot head's weights.

    Args:
        parameters: b2 and b3.
        scale: the checkpoint's exp(logit_scale), which the zero-shot weights contain.
        centred: whether the first term is taken without what is common to all classes.
    """

    def __init__(self, parameters: CalipParameters, *, scale: float, centred: bool = False) -> None:
        super().__init__()
        self.parameters_ = parameters
        self.scale = scale
        self.centred = centred

    def forward(self, image: torch.Tensor, tokens: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Compute what CALIP adds to the logits.

        Args:
            image: float32 [B,D], L2-normalised.
            tokens: float32 [B,P,D], L2-normalised.
            weight: float32 [D,K], the text features times the scale.

        Returns:
            float32 [B,K].
        """
        attention = _attention(tokens, weight, self.scale)
        added: torch.Tensor | None = None
        if self.parameters_.b2:
            added = self.parameters_.b2 * _through_image(attention, image, tokens, self.scale, centred=self.centred)
        if self.parameters_.b3:
            seen = self.parameters_.b3 * _through_text(attention, weight, self.scale)
            added = seen if added is None else added + seen
        if added is None:
            message = "b2 and b3 are both 0: there is no CALIP head to trace"
            raise ValueError(message)
        return added


def terms(
    image: torch.Tensor, tokens: torch.Tensor, weight: torch.Tensor, *, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The two terms before b2 and b3: (s f.Ta', s v.T'), each float32 [B,K]."""
    attention = _attention(tokens, weight, scale)
    return _through_image(attention, image, tokens, scale), _through_text(attention, weight, scale)


def _attention(tokens: torch.Tensor, weight: torch.Tensor, scale: float) -> torch.Tensor:
    """2A, [B,P,K]. The factor goes to the tokens, so that the weights stand in the graph once."""
    return (tokens * (ATTENTION_SCALE / scale)) @ weight


def _through_image(
    attention: torch.Tensor, image: torch.Tensor, tokens: torch.Tensor, scale: float, *, centred: bool = False
) -> torch.Tensor:
    # [B,P,1]: how much of the global feature stands at each position.
    presence = tokens @ image.unsqueeze(-1)
    weights = attention.softmax(dim=1)
    if centred:
        weights = weights - 1.0 / tokens.shape[1]
    return scale * (weights * presence).sum(dim=1)


def _through_text(attention: torch.Tensor, weight: torch.Tensor, scale: float) -> torch.Tensor:
    seen = attention.softmax(dim=2) @ weight.T
    pooled = (seen.mean(dim=1) + seen.amax(dim=1)) / scale
    return pooled @ weight


def common(image: torch.Tensor, tokens: torch.Tensor, parameters: CalipParameters, *, scale: float) -> torch.Tensor:
    """What the centred form leaves out, the same for every class: [B,D], [B,P,D] -> [B,1]."""
    return scale * parameters.b2 * (tokens.mean(dim=1) * image).sum(dim=1, keepdim=True)


def reference(
    image: torch.Tensor,
    tokens: torch.Tensor,
    text: torch.Tensor,
    parameters: CalipParameters,
    *,
    scale: float,
    centred: bool = False,
) -> torch.Tensor:
    """The formula as published, or less what `common` gives: [B,D], [B,P,D], [K,D] -> what is added to [B,K]."""
    attention = tokens @ text.T
    text_seen = (ATTENTION_SCALE * attention).softmax(dim=1).transpose(1, 2) @ tokens
    image_seen = (ATTENTION_SCALE * attention).softmax(dim=2) @ text
    pooled = image_seen.mean(dim=1) + image_seen.amax(dim=1)
    through_image = (text_seen @ image.unsqueeze(-1)).squeeze(-1)
    added = scale * (parameters.b2 * through_image + parameters.b3 * (pooled @ text.T))
    return added - common(image, tokens, parameters, scale=scale) if centred else added
