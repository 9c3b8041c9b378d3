"""Class names and prompts -> text features: encode every prompt, normalise, average, normalise again.

Source: openai/CLIP, notebooks/Prompt_Engineering_for_ImageNet.ipynb; open_clip, zero_shot_classifier.py.
"""

import torch
from torch.nn import functional

from calipso_export.models import LoadedModel
from calipso_export.progress import Progress, batches, track
from calipso_export.templates import Prompts
from calipso_export.towers.text import encode_text

_BATCH = 64


@torch.no_grad()
def text_features(model: LoadedModel, classes: tuple[str, ...], prompts: Prompts, progress: Progress) -> torch.Tensor:
    """Encode the prompts of every class.

    Returns:
        float32 [K,D], L2-normalised.
    """
    per_class = [prompts.of(name) for name in classes]
    flat = [prompt for own in per_class for prompt in own]
    # Prompts of about equal length together: a batch is as long as its longest.
    order = sorted(range(len(flat)), key=lambda index: len(flat[index]))
    features: list[torch.Tensor] = [torch.empty(0)] * len(flat)
    for indices in track(list(batches(order, _BATCH)), "encoding prompts", progress):
        encoded = encode_text(model.module, model.tokenizer([flat[index] for index in indices]))
        for index, feature in zip(indices, encoded, strict=True):
            features[index] = feature
    means, start = [], 0
    for own in per_class:
        means.append(torch.stack(features[start : start + len(own)]).mean(dim=0))
        start += len(own)
    return functional.normalize(torch.stack(means), dim=-1)


def cut_classes(model: LoadedModel, classes: tuple[str, ...], prompts: Prompts) -> list[str]:
    """Classes whose longest prompt does not fit into the text tower's context, so that its end is cut off."""
    tokenizer = model.tokenizer
    longest = {name: max(prompts.of(name), key=len) for name in classes}
    # Padding is what stands behind a short text.
    length = tokenizer(["a"]).shape[1]
    padding = int(tokenizer(["a"], context_length=length + 1)[0, -1])
    cut = []
    for some in batches(list(longest), _BATCH):
        longer = tokenizer([longest[name] for name in some], context_length=length + 1)
        cut += [name for name, row in zip(some, longer.tolist(), strict=True) if row[-1] != padding]
    return cut
