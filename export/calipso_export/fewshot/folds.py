"""Splits the shots into folds, so that every photo can be judged by what was fitted without it."""

from collections.abc import Sequence

import torch

from calipso_export.fewshot.features import single_classes
from calipso_runtime.errors import ShotsError

MOST_FOLDS = 5
_SEED = 0


def folds(labels: torch.Tensor, contents: torch.Tensor, classes: Sequence[str]) -> list[torch.Tensor]:
    """Rows of each fold: the same for the same photos, so that what is judged on them can be compared in pairs.

    Every class is spread evenly over the folds, and copies of one photo are in one fold. There are as many folds
    as the smallest class has different photos, `MOST_FOLDS` at most: nothing is ever fitted without a class.

    Args:
        labels: int64 [M], class index.
        contents: int64 [M], the same number for photos of the same content.
        classes: their names, for the message.

    Raises:
        ShotsError: a class has one photo only, copies aside.
    """
    different = [torch.unique(contents[labels == index]) for index in range(len(classes))]
    single = single_classes(labels, contents, len(classes))
    if single:
        names = ", ".join(repr(classes[index]) for index in single)
        message = (
            f"one photo only of {names}: settings are chosen by holding photos out, "
            "which leaves nothing of these classes. Add photos, or take --head tip-adapter or proker, which have usual "
            "settings for single photos"
        )
        raise ShotsError(message)
    count = min(MOST_FOLDS, *map(len, different))
    generator = torch.Generator().manual_seed(_SEED)
    fold_of = torch.empty(int(contents.max()) + 1, dtype=torch.int64)
    dealt = 0
    for own in different:
        shuffled = own[torch.randperm(len(own), generator=generator)]
        fold_of[shuffled] = (torch.arange(len(own)) + dealt) % count
        # Where one class ended the next begins: folds of equal size.
        dealt += len(own)
    return [(fold_of[contents] == fold).nonzero().flatten() for fold in range(count)]
