"""Tip-Adapter-F: the cache of Tip-Adapter, with its keys trained.

Source: as of `tip_adapter`; the recipe is in `fewshot.train`. The formula is Tip-Adapter's, over keys that are not
normalised, so the graph is the same too. The released code takes the epoch that is best on the test pictures; here
epoch, alpha and beta are chosen together on photos that the keys were not trained on.
"""

from typing import ClassVar

import torch

from calipso_export.fewshot.features import PhotoFeatures
from calipso_export.fewshot.search import ALPHAS, BETAS, evenly, middle_of_best
from calipso_export.fewshot.train import EPOCHS, Trained, Training, digest, settings_judge, train_keys
from calipso_export.heads.few_shot import Fit, Shots, held_out_by_folds
from calipso_export.heads.tip_adapter import TipAdapter
from calipso_export.progress import Progress, silent

# Every tenth of the betas that Tip-Adapter tries: here they are tried after every epoch.
_BETAS = BETAS[4::10]
# Exponentials over all epochs and betas: above, the photos to judge on are sampled evenly.
_MOST_EXPONENTIALS = 2e10


class TipAdapterF(TipAdapter):
    """The cache as published, over trained keys: see `TipAdapter`."""

    name: ClassVar[str] = "tip-adapter-f"
    title: ClassVar[str] = "Tip-Adapter-F"
    with_views: ClassVar[bool] = True

    @classmethod
    def fit(cls, shots: Shots, progress: Progress) -> Fit:
        """Train once without each fold to choose epoch, alpha and beta, then on all photos up to that epoch."""
        splits = list(shots.splits())
        trained = [
            _judged(train, held, f"training {cls.title}, fold {number} of {len(splits)}", progress)
            for number, (train, held) in enumerate(splits, start=1)
        ]
        # By epoch, the one before the first included, beta, alpha and photo.
        right = torch.cat([torch.stack(each.judged) for each, _ in trained], dim=3)
        accuracy = right.sum(dim=3).double() / right.shape[3]
        best = accuracy.flatten(1).amax(dim=1)
        epoch = int(best.argmax())
        beta_at, alpha_at = middle_of_best(accuracy[epoch])
        alpha, beta = round(float(ALPHAS[alpha_at]), 6), round(float(_BETAS[beta_at]), 6)
        before = float(torch.cat([plain for _, plain in trained]).double().mean())
        after = float(accuracy[epoch, beta_at, alpha_at])
        record = {
            "method": f"{len(splits)} folds of the shots" if shots.validation is None else "validation photos",
            "photos": right.shape[3],
            "accuracy_without": before,
            "accuracy_with": after,
            "best": {"epoch": epoch, "alpha": alpha, "beta": beta},
            "at_edge": [],
            "kept": after > before,
        }

        def at_best(own: Shots) -> TipAdapterF:
            what = f"training {cls.title} up to epoch {epoch}"
            own_progress = progress if own is shots else silent
            keys = train_keys(_training(own, epoch), own_progress, what=what, folder=own.folder).weights
            return cls(keys=keys, labels=own.photos.labels, alpha=alpha, beta=beta)

        return Fit(
            head=at_best(shots) if after > before else None,
            record=record,
            curve=_curve([each for each, _ in trained], best),
            held_out=held_out_by_folds(shots, at_best),
            refit=at_best,
        )


def _judged(train: Shots, held: PhotoFeatures, what: str, progress: Progress) -> tuple[Trained, torch.Tensor]:
    """Keys trained on some photos and judged on others; and which of those the plain classifier gets right."""
    tried = (EPOCHS + 1) * len(_BETAS) * len(train.photos.labels)
    held = held.rows(evenly(len(held.labels), _MOST_EXPONENTIALS / tried))
    plain = train.zero_shot(held)
    judge = settings_judge(held, train.photos.labels, plain, ALPHAS, _BETAS)
    tried_on = digest(held.plain, held.labels, plain, ALPHAS, _BETAS)
    trained = train_keys(_training(train), progress, what=what, judge=judge, judge_id=tried_on, folder=train.folder)
    return trained, plain.argmax(dim=1) == held.labels


def _training(shots: Shots, epochs: int = EPOCHS) -> Training:
    return Training(photos=shots.photos, text=shots.text, scale=shots.scale, bias=shots.bias, epochs=epochs)


def _curve(trained: list[Trained], best: torch.Tensor) -> list[dict[str, float]]:
    """Of each epoch the best accuracy on the photos held out, and the mean loss on the others."""
    losses = torch.tensor([each.losses for each in trained], dtype=torch.float64).mean(dim=0).tolist()
    points = [{"epoch": float(epoch), "accuracy": accuracy} for epoch, accuracy in enumerate(best.tolist())]
    return [points[0], *({**point, "loss": loss} for point, loss in zip(points[1:], losses, strict=True))]
