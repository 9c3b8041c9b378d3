"""CALIP-FS: CALIP's attention with four learned linear layers in it.

Source: Guo et al., "CALIP: Zero-Shot Enhancement of CLIP with Parameter-free Attention", AAAI 2023, whose abstract
says that a small number of linear layers is inserted in the attention for few-shot use. The released code
(ZiyuGuo99/CALIP) holds the parameter-free form alone. Where the layers stand is as in a public re-implementation
that calls itself unofficial (its `CALIP_FS_Block`): queries, keys and values by layers that text and image share,
and one layer behind both attentions. With f [D] and F [P,D] of one image and T [K,D]:

    Ta = softmax(2 (T Wq)(F Wk)', over positions) F Wv Wo    [K,D]
    V  = softmax(2 (F Wq)(T Wk)', over classes) T Wv Wo      [P,D]
    v  = mean_p V + max_p V                                   [D]
    logits += b2 s f.Ta' + b3 s v.T'

Ours: every layer is W = I + what is learned, which is 0 at the start, so that nothing learned is `calip`, to the digit;
one linear layer without bias each, where that implementation has three with ReLUs in front; and the factor 2 of the
released parameter-free code, where it has 1/sqrt(D). How the authors initialise and train is not known here.

Folded: M = Wq Wk' and N = Wv Wo are all that is left of them. The softmaxes are over 2 F M' T' and 2 F M T', and
`f.Ta_k = sum_p softmax_pk (F_p.f N')`: products of F with a [D,D] where CALIP has none, and the text stands in the
graph once.
"""

import dataclasses
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from calipso_export.fewshot.folds import folds
from calipso_export.fewshot.train import BATCH, EPOCHS, Task, Trained, digest, train
from calipso_export.heads.calip import ATTENTION_SCALE, CalipParameters
from calipso_export.heads.few_shot import Shots
from calipso_export.progress import Progress, silent

TITLE = "CALIP-FS"
# In the order of the first axis of `layers`, float32 [4,D,D].
LAYERS = ("query", "key", "value", "post")
# The names of M and N in a file.
MATCH, CARRY = "match", "carry"


class CalipFsHead(nn.Module):
    """Both added terms, over a zero-shot head's weights, in place of a `CalipHead`.

    Args:
        parameters: b2 and b3.
        layers: float32 [4,D,D], as in `LAYERS`.
        scale: the checkpoint's exp(logit_scale), which the zero-shot weights contain.
        centred: whether the first term is taken without what is common to all classes.
    """

    def __init__(
        self, parameters: CalipParameters, layers: torch.Tensor, *, scale: float, centred: bool = False
    ) -> None:
        super().__init__()
        self.parameters_ = parameters
        self.scale = scale
        self.centred = centred
        match, carry = _folded(layers)
        self.match = nn.Parameter(match, requires_grad=False)
        self.carry = nn.Parameter(carry, requires_grad=False)

    def forward(self, image: torch.Tensor, tokens: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """See `CalipHead.forward`."""
        # 2A is read off the zero-shot weights, which contain the scale.
        scaled = tokens * (ATTENTION_SCALE / self.scale)
        looked_at = ((scaled @ self.match.T) @ weight).softmax(dim=1)
        if self.centred:
            looked_at = looked_at - 1.0 / tokens.shape[1]
        presence = tokens @ (image @ self.carry.T).unsqueeze(-1)
        through_image = self.scale * (looked_at * presence).sum(dim=1)
        seen = (((scaled @ self.match) @ weight).softmax(dim=2) @ weight.T) @ self.carry
        pooled = (seen.mean(dim=1) + seen.amax(dim=1)) / self.scale
        added: torch.Tensor = self.parameters_.b2 * through_image + self.parameters_.b3 * (pooled @ weight)
        return added


def unfolded(match: torch.Tensor, carry: torch.Tensor) -> torch.Tensor:
    """Layers of the published form that fold to these: other factors of the same products."""
    same = torch.eye(len(match))
    return torch.stack([match, same, carry, same])


def reference(
    image: torch.Tensor,
    tokens: torch.Tensor,
    text: torch.Tensor,
    layers: torch.Tensor,
    parameters: CalipParameters,
    *,
    scale: float,
    centred: bool = False,
) -> torch.Tensor:
    """The formula above, layer by layer: [B,D], [B,P,D], [K,D] -> what is added to [B,K].

    Centred, without what the first term has in common for all classes: `b2 s f.(mean_p F Wv Wo)`.
    """
    query, key, value, post = layers
    text_seen = (ATTENTION_SCALE * (text @ query) @ (tokens @ key).transpose(1, 2)).softmax(dim=2)
    text_seen = text_seen @ (tokens @ value) @ post
    image_seen = (ATTENTION_SCALE * (tokens @ query) @ (text @ key).T).softmax(dim=2) @ (text @ value) @ post
    pooled = image_seen.mean(dim=1) + image_seen.amax(dim=1)
    through_image = (text_seen @ image.unsqueeze(-1)).squeeze(-1)
    if centred:
        through_image = through_image - ((tokens @ value @ post).mean(dim=1) * image).sum(dim=1, keepdim=True)
    added: torch.Tensor = scale * (parameters.b2 * through_image + parameters.b3 * (pooled @ text.T))
    return added


def terms(
    image: torch.Tensor, tokens: torch.Tensor, text: torch.Tensor, layers: torch.Tensor, *, scale: float
) -> torch.Tensor:
    """Both terms before b2 and b3, float32 [B,2,K]: the layers on the side of the text, of which there is one only."""
    match, carry = _folded(layers)
    looked_at = (tokens @ (ATTENTION_SCALE * text @ match).T).softmax(dim=1)
    through_image = (looked_at * (tokens @ (image @ carry.T).unsqueeze(-1))).sum(dim=1)
    seen = (tokens @ (ATTENTION_SCALE * text @ match.T).T).softmax(dim=2) @ (text @ carry)
    through_text = (seen.mean(dim=1) + seen.amax(dim=1)) @ text.T
    return scale * torch.stack([through_image, through_text], dim=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learned:
    """What came of training the layers.

    Attributes:
        layers: float32 [4,D,D]; None where CALIP, or nothing at all, was at least as good.
        held_out: float32 [M,2,K], the terms of each photo by layers that were trained without it; [0,2,K] without any.
        record: for the manifest: folds and photos used, accuracy without and with the layers, and the epoch.
        curve: of each epoch the accuracy on photos held out, and the loss on the others.
    """

    layers: torch.Tensor | None
    held_out: torch.Tensor
    record: dict[str, Any]
    curve: list[dict[str, float]]


def fit(shots: Shots, base: torch.Tensor, parameters: CalipParameters, progress: Progress) -> Learned:
    """Train without each fold to choose the epoch, then on all photos up to there.

    Args:
        shots: the shots, with their tokens.
        base: float32 [M,K], their logits without CALIP; by a few-shot head that was fitted without each of them.
        parameters: b2 and b3, which stay as they are.
        progress: told after each epoch.

    Raises:
        ShotsError: a class has one photo only.
    """
    photos = shots.photos
    parts = folds(photos.labels, photos.contents, shots.classes)
    training = _Training(shots, base, parameters)
    trained = [
        training.run(
            _others(held, len(base)), f"training {TITLE}, fold {number} of {len(parts)}", progress, judged=held
        )
        for number, held in enumerate(parts, start=1)
    ]
    accuracy = torch.cat([torch.stack(each.judged) for each in trained], dim=1).double().mean(dim=1)
    plain = float((base.argmax(dim=1) == photos.labels).double().mean())
    before = max(plain, float(accuracy[0]))
    epoch = int(accuracy.argmax())
    after = float(accuracy[epoch])
    losses = torch.tensor([each.losses for each in trained], dtype=torch.float64).mean(dim=0).tolist()
    points = [{"epoch": float(number), "accuracy": value} for number, value in enumerate(accuracy.tolist())]
    record = {
        "method": f"{len(parts)} folds of the shots",
        "photos": len(base),
        "accuracy_without": before,
        "accuracy_with": after,
        "best": {"epoch": epoch},
        "at_edge": ["epoch"] if epoch == EPOCHS else [],
        "kept": after > before,
    }
    curve = [points[0], *({**point, "loss": loss} for point, loss in zip(points[1:], losses, strict=True))]
    if not record["kept"]:
        return Learned(layers=None, held_out=torch.empty(0, 2, base.shape[1]), record=record, curve=curve)
    what = f"training {TITLE} up to epoch {epoch}"
    layers = _layers(training.run(torch.arange(len(base)), what, progress, epochs=epoch).weights)
    held_out = torch.empty(len(base), 2, base.shape[1])
    for held in parts:
        without = training.run(_others(held, len(base)), what, silent, epochs=epoch).weights
        held_out[held] = training.terms_of(held, _layers(without))
    return Learned(layers=layers, held_out=held_out, record=record, curve=curve)


class _Training:
    """Trains the layers on some of the photos."""

    def __init__(self, shots: Shots, base: torch.Tensor, parameters: CalipParameters) -> None:
        self.shots = shots
        self.base = base
        self.weights = torch.tensor([parameters.b2, parameters.b3])[:, None]
        photos = shots.photos
        self.identity = digest(photos.labels, photos.plain, photos.tokens, shots.text, base, self.weights)

    def run(
        self,
        rows: torch.Tensor,
        what: str,
        progress: Progress,
        *,
        judged: torch.Tensor | None = None,
        epochs: int = EPOCHS,
    ) -> Trained:
        """What comes of these photos; judged after each epoch by which of the others are right."""
        labels = self.shots.photos.labels

        def loss(learned: torch.Tensor, batch: torch.Tensor, epoch: int) -> torch.Tensor:  # noqa: ARG001 - every epoch alike
            chosen = rows[batch]
            return functional.cross_entropy(self._logits(chosen, _layers(learned)), labels[chosen])

        def judge(learned: torch.Tensor) -> torch.Tensor:
            held = torch.empty(0, dtype=torch.int64) if judged is None else judged
            parts = [self._logits(some, _layers(learned)).argmax(dim=1) for some in torch.split(held, BATCH)]
            return torch.cat(parts) == labels[held]

        width = self.shots.text.shape[1]
        scale = torch.tensor(self.shots.scale, dtype=torch.float64)
        task = Task(
            start=torch.zeros(len(LAYERS), width, width),
            photos=len(rows),
            loss=loss,
            identity=f"{TITLE} {self.identity} {digest(rows, scale)}",
            epochs=epochs,
        )
        judge_id = "" if judged is None else digest(judged)
        folder = self.shots.folder
        return train(task, progress, what=what, judge=judge if judge_id else None, judge_id=judge_id, folder=folder)

    def terms_of(self, rows: torch.Tensor, layers: torch.Tensor) -> torch.Tensor:
        """float32 [N,2,K], of some of the photos."""
        return torch.cat([self._terms(some, layers) for some in torch.split(rows, BATCH)])

    def _terms(self, rows: torch.Tensor, layers: torch.Tensor) -> torch.Tensor:
        photos = self.shots.photos
        return terms(photos.plain[rows], photos.tokens[rows], self.shots.text, layers, scale=self.shots.scale)

    def _logits(self, rows: torch.Tensor, layers: torch.Tensor) -> torch.Tensor:
        return self.base[rows] + (self.weights * self._terms(rows, layers)).sum(dim=1)


def _layers(learned: torch.Tensor) -> torch.Tensor:
    return learned + torch.eye(learned.shape[1])


def _folded(layers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """M and N."""
    query, key, value, post = layers
    return query @ key.T, value @ post


def _others(held: torch.Tensor, count: int) -> torch.Tensor:
    kept = torch.ones(count, dtype=torch.bool)
    kept[held] = False
    return kept.nonzero().flatten()
