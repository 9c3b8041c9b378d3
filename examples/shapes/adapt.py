"""Measures what CALIP and Tip-Adapter add to a model's zero-shot logits, in eager torch and from the formulas alone.

It is kept apart from the exporter on purpose: a second implementation shows that the published numbers do not rest
on a mistake that both would share.
"""

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from torch.nn import functional

FOLDS = 4
"""The shots are split this often: three quarters of a class form the cache, the rest choose alpha and beta."""
_ALPHAS = tuple(float(value) for value in np.geomspace(0.1, 50, 20).round(3))
_BETAS = tuple(float(value) for value in np.geomspace(0.5, 50, 15).round(3))
_BETA2S = tuple(float(value) for value in np.linspace(0.001, 1.999, 20).round(3))
_BETA3S = tuple(float(value) for value in np.linspace(0.001, 0.099, 15).round(3))
_SHARPNESS = 2.0
"""CALIP's factor inside both of its softmaxes."""


@dataclass(frozen=True)
class Features:
    """What a model says of n pictures.

    Attributes:
        pooled: Normalised image features, n x dim.
        tokens: Normalised features of the positions, n x positions x dim; None where the tower gives none.
        labels: The pictures' class numbers.
    """

    pooled: torch.Tensor
    tokens: torch.Tensor | None
    labels: torch.Tensor


@torch.no_grad()
def image_features(model: Any, images: torch.Tensor, labels: torch.Tensor, batch: int = 250) -> Features:
    """Pooled and, of a vision transformer, position-wise features of preprocessed pictures."""
    pooled, tokens = [], []
    projection = getattr(model.visual, "proj", None)
    if projection is not None:
        model.visual.output_tokens = True
    for chunk in torch.split(images, batch):
        given = model.visual(chunk)
        if projection is None:
            pooled.append(functional.normalize(given, dim=-1))
        else:
            pooled.append(functional.normalize(given[0], dim=-1))
            tokens.append(functional.normalize(given[1] @ projection, dim=-1))  # the tower has applied ln_post already
    return Features(torch.cat(pooled), torch.cat(tokens) if tokens else None, labels)


@torch.no_grad()
def text_weights(model: Any, tokenizer: Any, names: list[str], templates: tuple[str, ...]) -> torch.Tensor:
    """One normalised row a class: the mean of the normalised features of its prompts."""
    rows = [
        functional.normalize(model.encode_text(tokenizer([t.format(name) for name in names])), dim=-1)
        for t in templates
    ]
    return functional.normalize(torch.stack(rows).mean(dim=0), dim=-1)


def accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Top-1 accuracy in per cent."""
    return 100.0 * float((logits.argmax(dim=-1) == labels).double().mean())


def cache_logits(keys: Features, queries: Features, classes: int, beta: float) -> torch.Tensor:
    """Tip-Adapter's cache term, before its factor alpha."""
    affinity = queries.pooled @ keys.pooled.T
    return torch.exp(-beta * (1 - affinity)) @ functional.one_hot(keys.labels, classes).float()


def subset(features: Features, base: torch.Tensor, chosen: torch.Tensor) -> tuple[Features, torch.Tensor]:
    """Some of the pictures, with their logits."""
    tokens = None if features.tokens is None else features.tokens[chosen]
    return Features(features.pooled[chosen], tokens, features.labels[chosen]), base[chosen]


def choose_cache(shots: Features, base: torch.Tensor) -> tuple[float, float]:
    """The alpha and beta that do best on left-out shots, whose logits without the cache are `base`."""
    classes = base.shape[1]
    place = torch.zeros_like(shots.labels)
    for label in range(classes):
        of_class = shots.labels == label
        place[of_class] = torch.arange(int(of_class.sum()))
    right = dict.fromkeys(product(_ALPHAS, _BETAS), 0)
    for fold in range(FOLDS):
        keys, _ = subset(shots, base, (place % FOLDS != fold).nonzero()[:, 0])
        queries, logits = subset(shots, base, (place % FOLDS == fold).nonzero()[:, 0])
        for beta in _BETAS:
            term = cache_logits(keys, queries, classes, beta)
            for alpha in _ALPHAS:
                right[alpha, beta] += int(((logits + alpha * term).argmax(dim=-1) == queries.labels).sum())
    return max(right, key=lambda pair: right[pair])


def calip_terms(features: Features, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """CALIP's two terms before their factors: text attended by the picture, and picture attended by the text."""
    if features.tokens is None:
        msg = "The image tower gives no position-wise features: expected a vision transformer."
        raise ValueError(msg)
    attention = features.tokens @ weights.T  # n x positions x classes
    over_positions = torch.softmax(_SHARPNESS * attention, dim=1)
    text_attended = torch.einsum("npd,npc->ncd", features.tokens, over_positions)
    image_attended = torch.softmax(_SHARPNESS * attention, dim=2) @ weights
    visual = image_attended.mean(dim=1) + image_attended.amax(dim=1)
    return torch.einsum("nd,ncd->nc", features.pooled, text_attended), visual @ weights.T


def calip_logits(
    base: torch.Tensor, terms: tuple[torch.Tensor, torch.Tensor], scale: float, factors: tuple[float, float]
) -> torch.Tensor:
    """Zero-shot logits with both of CALIP's terms added."""
    return base + factors[0] * scale * terms[0] + factors[1] * scale * terms[1]


def choose_calip(shots: Features, base: torch.Tensor, weights: torch.Tensor, scale: float) -> tuple[float, float]:
    """The pair of factors that does best on the shots; CALIP trains nothing, so all of them can be asked."""
    terms = calip_terms(shots, weights)
    pairs = list(product(_BETA2S, _BETA3S))
    return max(pairs, key=lambda pair: accuracy(calip_logits(base, terms, scale, pair), shots.labels))
