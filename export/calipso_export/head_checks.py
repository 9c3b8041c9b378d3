"""Checks what eager PyTorch and the graph share: text features and cache keys, made anew the plain way.

Both sides of the parity comparison read the same text features and keys, so a mistake in them would
agree with itself. A sample of each is made again through open_clip's own `encode_text` and forward.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch.nn import functional

from calipso_export.fewshot.encode import augmentation, views_of
from calipso_export.models import LoadedModel
from calipso_export.photos import Photo
from calipso_export.templates import Prompts

# What one check may cost: a few seconds of a full-size model on a CPU.
_MOST_PROMPTS = 64
_MOST_PHOTOS = 4


@torch.no_grad()
def check_text(model: LoadedModel, classes: Sequence[str], prompts: Prompts, text: torch.Tensor) -> dict[str, Any]:
    """Encode the prompts of evenly chosen classes with open_clip's own `encode_text`.

    Args:
        model: the model.
        classes: the class names.
        prompts: what is encoded for each.
        text: float32 [K,D], the text features that both sides use.

    Returns:
        How many classes were checked, and the lowest cosine.
    """
    encode = cast("Any", model.module).encode_text
    chosen: list[int] = []
    used = 0
    for index in _spread(len(classes)):
        used += len(prompts.of(classes[index]))
        if chosen and used > _MOST_PROMPTS:
            break
        chosen.append(index)
    cosines = []
    for index in chosen:
        own = encode(model.tokenizer(list(prompts.of(classes[index]))), normalize=True)
        cosines.append(functional.cosine_similarity(own.mean(dim=0), text[index], dim=0))
    return {"checked": len(chosen), "of": len(classes), "min_cosine": float(torch.stack(cosines).min())}


@torch.no_grad()
def check_keys(
    model: LoadedModel, photos: Sequence[Photo], keys: torch.Tensor, *, epochs: int, seed: int
) -> dict[str, Any]:
    """Encode the augmented views of evenly chosen photos with open_clip's own forward.

    Args:
        model: the model.
        photos: the photos, in the order of the keys.
        keys: float32 [M,D], the keys that both sides use.
        epochs: augmented views per photo.
        seed: of the augmentation.

    Returns:
        How many keys were checked, and the lowest cosine.
    """
    chosen = _spread(len(photos))[:_MOST_PHOTOS]
    cosines = []
    for index in chosen:
        own = _key(model, photos[index], epochs=epochs, seed=seed)
        cosines.append(functional.cosine_similarity(own, keys[index], dim=0))
    return {"checked": len(chosen), "of": len(photos), "min_cosine": float(torch.stack(cosines).min())}


def _key(model: LoadedModel, photo: Photo, *, epochs: int, seed: int) -> torch.Tensor:
    """The key [D] of an example, through open_clip's own forward."""
    front_end = model.front_end
    if front_end.is_augmented and epochs:
        return model.encode_image(views_of(photo, augmentation(model), epochs=epochs, seed=seed)).mean(0)
    images = front_end.eager_images(front_end.eager_input(photo.path)[None])
    return front_end.eager_feature(model.encode_image(images))[0]


def _spread(count: int) -> list[int]:
    """All indices, so ordered that any first few of them are spread over the whole."""
    order, step, seen = [0], count, {0}
    while len(order) < count:
        step = max(1, step // 2)
        order += [index for index in range(0, count, step) if index not in seen]
        seen.update(order)
    return order
