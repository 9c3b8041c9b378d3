"""Measures a trained model of the shapes example and writes what it finds into the model's training.json.

    python examples/shapes/evaluate.py --model models/shapes-vit [--seed 0]

The demo task's classes never occur in training. Everything that is chosen (alpha, beta, CALIP's factors) is chosen
on the shots; each method then sees the held-out pictures once.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

import shapes_model
from adapt import (
    Features,
    accuracy,
    cache_logits,
    calip_logits,
    calip_terms,
    choose_cache,
    choose_calip,
    image_features,
    text_weights,
)
from cache import VALIDATION_STREAM, picture_and_captions
from draw import DEFAULT_HELD_OUT, DEFAULT_SHOTS, write_task
from world import COLOURS, DEMO_CLASSES, HELD_OUT, SHAPES, SOLID, TEXTURES, UNSEEN_COLOURS, UNSEEN_SHAPES

TEMPLATES = ("a photo of a {}.", "a drawing of a {}.")
VALIDATION_PICTURES = 1000
RETRIEVAL_BATCH = 100
_DECIMALS = 2


def read_task(folder: Path, part: str, model: Any, transform: Any) -> Features:
    """Features of one part ("shots" or "held-out") of a demo task, in the order of its classes.txt."""
    names = (folder / "classes.txt").read_text(encoding="utf-8").splitlines()
    paths = [(path, label) for label, name in enumerate(names) for path in sorted((folder / part / name).glob("*.png"))]
    images = []
    for path, _ in paths:
        with Image.open(path) as picture:
            images.append(transform(picture))
    return image_features(model, torch.stack(images), torch.tensor([label for _, label in paths]))


def measure_task(folder: Path, model: Any, transform: Any, tokenizer: Any) -> dict[str, Any]:
    """Zero-shot, CALIP and Tip-Adapter on a demo task."""
    names = (folder / "classes.txt").read_text(encoding="utf-8").splitlines()
    weights = text_weights(model, tokenizer, names, TEMPLATES)
    shots, held_out = (read_task(folder, part, model, transform) for part in ("shots", "held-out"))
    scale = float(model.logit_scale.detach().exp())
    shots_base, base = (scale * features.pooled @ weights.T for features in (shots, held_out))

    alpha, beta = choose_cache(shots, shots_base)
    tip = base + alpha * cache_logits(shots, held_out, len(names), beta)
    measured: dict[str, Any] = {
        "pictures": len(held_out.labels),
        "classes": len(names),
        "shots_per_class": len(shots.labels) // len(names),
        "templates": list(TEMPLATES),
        "zero_shot": _by_group(base, held_out.labels, names),
        "tip_adapter": {"alpha": alpha, "beta": beta, **_by_group(tip, held_out.labels, names)},
    }
    if held_out.tokens is not None:
        factors = choose_calip(shots, shots_base, weights, scale)
        shots_calip = calip_logits(shots_base, calip_terms(shots, weights), scale, factors)
        calip = calip_logits(base, calip_terms(held_out, weights), scale, factors)
        alpha, beta = choose_cache(shots, shots_calip)
        both = calip + alpha * cache_logits(shots, held_out, len(names), beta)
        chosen = {"beta2": factors[0], "beta3": factors[1]}
        measured["calip"] = {**chosen, **_by_group(calip, held_out.labels, names)}
        measured["calip_and_tip_adapter"] = {
            **chosen, "alpha": alpha, "beta": beta, **_by_group(both, held_out.labels, names)
        }  # fmt: skip
    return measured


def _by_group(logits: torch.Tensor, labels: torch.Tensor, names: list[str]) -> dict[str, float]:
    """Top-1 accuracy over all pictures and over those of each group of classes; a guess may be of any class."""
    measured = {"top1_percent": round(accuracy(logits, labels), _DECIMALS)}
    groups = [_group(name) for name in names]
    for group in sorted(set(groups)):
        chosen = torch.tensor([other == group for other in groups])[labels]
        measured[f"top1_percent_{group}"] = round(accuracy(logits[chosen], labels[chosen]), _DECIMALS)
    return measured


def _group(name: str) -> str:
    """What is new about a class of the demo task."""
    colour, _, shape = DEMO_CLASSES[name]
    return "new_colours" if colour in UNSEEN_COLOURS else "new_shapes" if shape in UNSEEN_SHAPES else "new_combinations"


def measure_validation(model: Any, tokenizer: Any, seed: int, count: int = VALIDATION_PICTURES) -> dict[str, Any]:
    """How well new pictures of the training world are described: by combination, attribute and own caption."""
    drawn = [picture_and_captions(seed, VALIDATION_STREAM, index, captions=1) for index in tqdm(range(count))]
    images = shapes_model.normalised(np.stack([pixels for _, pixels, _ in drawn]))
    features = image_features(model, images, torch.zeros(count, dtype=torch.long))
    known = [(c, t, s) for c in COLOURS for t in TEXTURES for s in SHAPES if (c, t, s) not in HELD_OUT]
    names = [" ".join(word for word in combination if word != SOLID) for combination in known]
    guesses = (features.pooled @ text_weights(model, tokenizer, names, TEMPLATES).T).argmax(dim=-1).tolist()
    truths = [(spec.colour, spec.texture, spec.shape) for spec, _, _ in drawn]
    pairs = zip(guesses, truths, strict=True)
    hits = torch.tensor([[a == b for a, b in zip(known[guess], truth, strict=True)] for guess, truth in pairs])
    shares = [round(100 * float(column.double().mean()), _DECIMALS) for column in (*hits.T, hits.all(dim=1))]
    with torch.no_grad():
        texts = torch.nn.functional.normalize(model.encode_text(tokenizer([t[0] for _, _, t in drawn])), dim=-1)
    scores = [
        accuracy(features.pooled[start : start + RETRIEVAL_BATCH] @ texts[start : start + RETRIEVAL_BATCH].T,
                 torch.arange(min(RETRIEVAL_BATCH, count - start)))
        for start in range(0, count, RETRIEVAL_BATCH)
    ]  # fmt: skip
    return {
        "pictures": count,
        "combinations": len(known),
        "combination_percent": shares[3],
        "colour_percent": shares[0],
        "texture_percent": shares[1],
        "shape_percent": shares[2],
        "caption_retrieval": {"of": RETRIEVAL_BATCH, "top1_percent": round(sum(scores) / len(scores), _DECIMALS)},
    }


def evaluate(folder: Path, seed: int) -> dict[str, Any]:
    """Measure a model on a demo task drawn from `seed` and on new pictures of the training world."""
    model, transform, tokenizer = shapes_model.load(folder)
    with tempfile.TemporaryDirectory() as temporary:
        task = Path(temporary) / "task"
        write_task(task, shots=DEFAULT_SHOTS, held_out=DEFAULT_HELD_OUT, seed=seed)
        demo = measure_task(task, model, transform, tokenizer)
    return {"task_seed": seed, "demo_task": demo, "validation": measure_validation(model, tokenizer, seed)}


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, measure, and write the measurements."""
    parser = argparse.ArgumentParser(description="Measure a trained model of the shapes example.")
    parser.add_argument("--model", type=Path, required=True, help="folder that train.py wrote")
    parser.add_argument("--seed", type=int, default=0, help="seed of the demo task (default: %(default)s)")
    options = parser.parse_args(arguments)
    record_path = options.model / "training.json"
    try:
        measured = evaluate(options.model, options.seed)
        record = json.loads(record_path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        parser.error(str(error))
    record["held_out"] = measured
    partial = record_path.with_name(record_path.name + ".partial")
    partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    partial.replace(record_path)
    print(json.dumps(measured, indent=2))


if __name__ == "__main__":
    main()
