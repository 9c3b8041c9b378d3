"""Fixed texts that a bundle with a text tower is measured and verified on, and open_clip's own answers to them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from calipso_export.models import LoadedModel
from calipso_export.templates import Prompts
from calipso_export.towers.text import TextTower
from calipso_runtime.parity import Gates, Parity

# Plain prompts, and what tokenizers and contexts go wrong with first.
TEXTS = (
    "a photo of a cat.",
    "a photo of a dog, a type of pet.",
    "a centered satellite photo of a river.",
    "three red tulips in a vase on a wooden table",
    "itap of my bicycle",
    "",
    "CAPITALS, digits 0123456789, and marks: (!?) #@%",
    "café &amp; crème brûlée 🍮",
    "猫の写真",
    "a very long description of " + "one thing after another and " * 60 + "of a house",
)
# Of the bundle's own classes so many are added, evenly chosen.
_MOST_CLASSES = 6
_SHOWN = 40


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probes:
    """Texts, and the reference's answers.

    Attributes:
        texts: what is encoded.
        token_ids: int64 [N,L], by open_clip's tokenizer.
        features: float32 [N,D], by open_clip's `encode_text`, L2-normalised.
    """

    texts: tuple[str, ...]
    token_ids: torch.Tensor
    features: torch.Tensor


@torch.no_grad()
def probe(model: LoadedModel, classes: Sequence[str], prompts: Prompts) -> Probes:
    """Ask open_clip about the fixed texts, and about a prompt each of some of the classes."""
    chosen = classes[:: max(1, -(-len(classes) // _MOST_CLASSES))]
    texts = (*TEXTS, *(prompts.of(name)[0] for name in chosen))
    token_ids = model.tokenizer(list(texts))
    features = functional.normalize(TextTower.reference(model.module, token_ids), dim=-1)
    return Probes(texts=texts, token_ids=token_ids, features=features)


def with_texts(parity: Parity, probes: Probes, shipped: Mapping[str, npt.NDArray[np.float32]], gates: Gates) -> Parity:
    """What was measured of pictures, and of texts beside it: features of the probes against open_clip's.

    Args:
        parity: of the pictures.
        probes: what was asked.
        shipped: by file: float32 [N,D].
        gates: of logits and embeddings, which hold for texts as well.
    """
    measured = {name: _measured(probes, features) for name, features in shipped.items()}
    failures = list(parity.failures)
    for name, found in measured.items():
        if not found["relative_error"] <= gates.max_relative_logit_error:
            failures.append(
                f"{name}: relative error {found['relative_error']:.2e} of the feature of the text "
                f"{found['worst_text']!r}, allowed is {gates.max_relative_logit_error:.0e}"
            )
        if not found["min_cosine"] >= gates.min_embedding_cosine:
            failures.append(
                f"{name}: text embedding cosine {found['min_cosine']:.7f}, needed is {gates.min_embedding_cosine}"
            )
    document = {
        **parity.document,
        "texts": {"asked": list(probes.texts), "by_file": measured},
        "status": "failed" if failures else "passed",
        "failures": failures,
    }
    return Parity(document=document, failures=tuple(failures))


def _measured(probes: Probes, features: npt.NDArray[np.float32]) -> dict[str, Any]:
    eager, wide = probes.features.double().numpy(), features.astype(np.float64)
    errors = np.abs(wide - eager).max(axis=1) / np.abs(eager).max(axis=1)
    cosines = (wide * eager).sum(axis=1) / (np.linalg.norm(wide, axis=1) * np.linalg.norm(eager, axis=1))
    worst = int(np.argmax(np.where(np.isnan(errors), np.inf, errors)))
    return {
        "relative_error": float(errors[worst]),
        "min_cosine": float(cosines.min()),
        "worst_text": probes.texts[worst][:_SHOWN],
    }
