"""Trains a small CLIP from scratch on the drawn pictures of the shapes example.

    python examples/shapes/train.py --out models/shapes-vit [--steps N] [--batch B] [--seed S] [--resume]

An interrupted run goes on with --resume. The weights are those of the last step: nothing is chosen by a held-out
picture.
"""

import argparse
import contextlib
import json
import math
import os
import platform
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

import shapes_model
from cache import TRAINING_STREAM, Pictures, load_or_draw, tokenize_captions
from world import DEMO_CLASSES

MAX_LOGIT_SCALE = math.log(100)
_WEIGHT_DECAY = 0.1
_BETAS = (0.9, 0.98)
_MAX_GRADIENT_NORM = 1.0
_MATRIX_DIMS = 2
_SHIFT_PX = 4
_CURVE_POINTS = 200
_CHECKPOINT_EVERY = 250
_AUGMENT_STREAM, _ORDER_STREAM = 20, 21


@dataclass(frozen=True)
class Settings:
    """What determines the trained weights, besides the versions of the libraries."""

    architecture: str
    steps: int
    batch: int
    pictures: int
    seed: int
    peak_learning_rate: float
    warmup_steps: int


def contrastive_loss(
    images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor, tokens: torch.Tensor
) -> torch.Tensor:
    """CLIP's symmetric loss, except that another picture with the very same caption does not count as wrong."""
    logits = scale * functional.normalize(images.float()) @ functional.normalize(texts.float()).T
    same = (tokens[:, None] == tokens[None]).all(dim=-1)
    same &= ~torch.eye(len(tokens), dtype=torch.bool)
    logits = logits.masked_fill(same, -torch.inf)
    labels = torch.arange(len(logits))
    return (functional.cross_entropy(logits, labels) + functional.cross_entropy(logits.T, labels)) / 2


def learning_rate(step: int, settings: Settings) -> float:
    """Linear warm-up, then a cosine down to zero."""
    if step < settings.warmup_steps:
        return settings.peak_learning_rate * (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return settings.peak_learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def batch_of(step: int, pictures: Pictures, settings: Settings) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The pictures, shifted at random, and captions of one step; they depend on the step alone, so a run can resume."""
    count, batch = len(pictures.pixels), settings.batch
    epoch, within = divmod(step, count // batch)
    order = np.random.default_rng([settings.seed, _ORDER_STREAM, epoch]).permutation(count)
    chosen = order[within * batch : (within + 1) * batch]
    rng = np.random.default_rng([settings.seed, _AUGMENT_STREAM, step])
    side = pictures.pixels.shape[1]
    padding = ((0, 0), (_SHIFT_PX, _SHIFT_PX), (_SHIFT_PX, _SHIFT_PX), (0, 0))
    padded = np.pad(pictures.pixels[chosen], padding, mode="reflect")
    corners = rng.integers(0, 2 * _SHIFT_PX + 1, (batch, 2))
    shifted = np.stack([picture[y : y + side, x : x + side] for picture, (y, x) in zip(padded, corners, strict=True)])
    tokens = pictures.tokens[chosen, rng.integers(0, pictures.tokens.shape[1], batch)]
    return shifted, tokens.astype(np.int64)


def optimizer_for(model: torch.nn.Module) -> torch.optim.AdamW:
    """AdamW that decays matrices only: gains, biases and the logit scale stay free."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= _MATRIX_DIMS], "weight_decay": _WEIGHT_DECAY},
        {"params": [p for p in parameters if p.ndim < _MATRIX_DIMS], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=_BETAS, fused=True)


def train_step(
    model: Any, optimizer: torch.optim.Optimizer, pixels: NDArray[np.uint8], ids: NDArray[np.int64]
) -> float:
    """One step of gradient descent; returns the loss."""
    tokens = torch.from_numpy(ids)
    # On a CPU the fused attention kernel is several times slower backwards than plain matrix products are.
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        images = model.encode_image(shapes_model.normalised(pixels))
        texts = model.encode_text(tokens)
    loss = contrastive_loss(images, texts, model.logit_scale.exp(), tokens)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), _MAX_GRADIENT_NORM)
    optimizer.step()
    with torch.no_grad():
        model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
    return loss.item()


def train(out: Path, settings: Settings, *, resume: bool = False) -> list[float]:
    """Train, and write the config, the weights and training.json into `out`; returns the loss of every step.

    Raises:
        FileExistsError: If an interrupted run lies there and `resume` is False.
        FileNotFoundError: If `resume` is True and no interrupted run lies there.
        ValueError: If the interrupted run had other settings, or the batch is larger than the set of pictures.
    """
    if settings.batch > settings.pictures:
        msg = f"The batch is {settings.batch}: expected at most the {settings.pictures} pictures drawn."
        raise ValueError(msg)
    work = out.with_name(out.name + ".work")
    checkpoint = work / "checkpoint.pt"
    if checkpoint.exists() and not resume:
        msg = f"{work} holds an interrupted run. Pass --resume to go on with it, or delete it."
        raise FileExistsError(msg)
    if resume and not checkpoint.exists():
        msg = f"{checkpoint} is missing: expected an interrupted run. Leave --resume away."
        raise FileNotFoundError(msg)
    work.mkdir(parents=True, exist_ok=True)
    shapes_model.write_configuration(out, settings.architecture)
    torch.manual_seed(settings.seed)
    model: Any = shapes_model.build(out).train()
    optimizer = optimizer_for(model)
    losses, seconds, planned = _restore(checkpoint, model, optimizer, settings) if resume else ([], 0.0, [])
    planned.append((len(losses), settings.steps))
    pictures = load_or_draw(work / "pictures.npz", settings.pictures, settings.seed, TRAINING_STREAM)

    started = time.monotonic() - seconds
    progress = tqdm(range(len(losses), settings.steps), initial=len(losses), total=settings.steps, unit="step")
    for step in progress:
        rate = learning_rate(step, settings)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with _denormals_as_zero():
            losses.append(train_step(model, optimizer, *batch_of(step, pictures, settings)))
        progress.set_postfix(loss=f"{np.mean(losses[-50:]):.3f}", scale=f"{model.logit_scale.exp().item():.1f}")
        if (step + 1) % _CHECKPOINT_EVERY == 0:
            _keep(
                checkpoint,
                model,
                optimizer,
                settings=settings,
                losses=losses,
                planned=planned,
                seconds=time.monotonic() - started,
            )

    # The demo task's new words keep their untrained rows: with zeros, "maroon star" and "olive star" would be one text.
    kept = np.union1d(pictures.tokens, tokenize_captions(DEMO_CLASSES)).astype(np.int64)
    shapes_model.save(model, out / f"{out.name}.safetensors", kept)
    record = training_record(model, settings, losses, time.monotonic() - started)
    record["steps_planned"] = [{"from_step": start, "steps": steps} for start, steps in planned]
    (out / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(work)
    return losses


@contextlib.contextmanager
def _denormals_as_zero() -> Iterator[None]:
    """Numbers near zero would slow the first steps down. It holds for all that the thread computes, so not for long."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def training_record(model: torch.nn.Module, settings: Settings, losses: list[float], seconds: float) -> dict[str, Any]:
    """What training.json says of a run; evaluate.py adds its measurements."""
    # The mean of each stretch of steps: at most _CURVE_POINTS of them.
    stretches = np.array_split(np.array(losses), min(_CURVE_POINTS, len(losses)))
    ends = np.cumsum([len(stretch) for stretch in stretches])
    return {
        "settings": asdict(settings),
        "images_seen": settings.steps * settings.batch,
        "parameters": {
            "total": sum(p.numel() for p in model.parameters()),
            "vision": sum(p.numel() for name, p in model.named_parameters() if name.startswith("visual.")),
        },
        "training_minutes": round(seconds / 60, 1),
        "cpu_cores": os.cpu_count(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__,
                     "open_clip": version("open_clip_torch"), "numpy": np.__version__},
        "loss_curve": [[int(end), round(float(part.mean()), 4)] for end, part in zip(ends, stretches, strict=True)],
    }  # fmt: skip


def _keep(path: Path, model: Any, optimizer: Any, *, settings: Settings, **progress: Any) -> None:
    """Write a checkpoint; the rename keeps the previous one whole if this is interrupted."""
    partial = path.with_name(path.name + ".partial")
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "settings": asdict(settings)}
    torch.save({**state, **progress}, partial)
    partial.replace(path)


def _restore(
    path: Path, model: Any, optimizer: Any, settings: Settings
) -> tuple[list[float], float, list[tuple[int, int]]]:
    """Load a checkpoint; returns the losses so far, the seconds they took, and what length was planned from where."""
    state = torch.load(path, weights_only=True)
    # The length alone may change: a run that turns out too slow can be given a shorter schedule.
    if {**state["settings"], "steps": 0} != {**asdict(settings), "steps": 0}:
        msg = f"{path} was written with {state['settings']}: expected {asdict(settings)}. Pass the same."
        raise ValueError(msg)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["losses"], state["seconds"], state.get("planned", [(0, state["settings"]["steps"])])


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description="Train a small CLIP on the drawn pictures of the shapes example.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; its name is the model's")
    parser.add_argument("--arch", choices=shapes_model.ARCHITECTURES, default="vit", help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=3000, help="steps (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=128, help="pictures a step (default: %(default)s)")
    parser.add_argument("--pictures", type=int, default=80_000, help="pictures to draw (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate (default: %(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run of the same settings")
    options = parser.parse_args(arguments)
    settings = Settings(
        architecture=options.arch,
        steps=options.steps,
        batch=options.batch,
        pictures=options.pictures,
        seed=options.seed,
        peak_learning_rate=options.lr,
        warmup_steps=min(300, options.steps // 10 + 1),
    )
    try:
        losses = train(options.out, settings, resume=options.resume)
    except (FileExistsError, FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    print(f"Wrote {options.out}: loss {np.mean(losses[-50:]):.3f} after {len(losses)} steps.")


if __name__ == "__main__":
    main()
