"""Trains a tensor on the features of the photos, such as the keys of a cache: Tip-Adapter-F's recipe, resumable.

Source: Zhang et al., ECCV 2022, and the released code (gaopengcuhk/Tip-Adapter, main.py): a bias-free layer that
starts as the keys, AdamW with a learning rate of 1e-3 and eps 1e-4, cosine per step, batches of 256, 20 epochs of one
augmented view of each photo, cross-entropy of the whole logits at a fixed alpha and beta. The keys are not
normalised again. Whatever else is trained by this recipe starts as its own tensor and brings its own loss.

The state is kept after every epoch. Everything random is drawn from the epoch's number, so that a training that was
interrupted ends with the same bits.
"""

import contextlib
import dataclasses
import hashlib
import math
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from calipso_export.fewshot.features import PhotoFeatures
from calipso_export.fewshot.search import cache_logits
from calipso_export.fewshot.store import key_of
from calipso_export.progress import Progress

EPOCHS = 20
LEARNING_RATE = 1e-3
EPS = 1e-4
BATCH = 256
# The released code's start; the alpha and beta that ship are chosen afterwards.
ALPHA, BETA = 1.17, 1.0
_FOLDER = "training"
# A new number whenever the same photos would give other weights: old states are then not used.
_RECIPE = 2
_UNREADABLE = (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile)

Judge = Callable[[torch.Tensor], torch.Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What is trained.

    Attributes:
        start: float32, as it is before the first epoch.
        photos: how many there are to train on.
        loss: the tensor, some of the photos' rows, and the epoch -> the mean loss of these photos.
        identity: a digest of all that the loss depends on.
        epochs: after how many of `EPOCHS` the training stops; the learning rate falls as if it went on.
    """

    start: torch.Tensor
    photos: int
    loss: Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]
    identity: str
    epochs: int = EPOCHS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """What keys are trained on.

    Attributes:
        photos: the photos; of their views where there are any, else of their averaged features.
        text: float32 [K,D], L2-normalised.
        scale: the checkpoint's exp(logit_scale).
        bias: its logit bias.
        epochs: see `Task`.
    """

    photos: PhotoFeatures
    text: torch.Tensor
    scale: float
    bias: float
    epochs: int = EPOCHS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """What came of it.

    Attributes:
        weights: the tensor; keys are [M,D], not normalised.
        losses: the mean loss of every epoch.
        judged: what the judge said of it before the first epoch, and after each.
    """

    weights: torch.Tensor
    losses: list[float]
    judged: list[torch.Tensor]


def train(
    task: Task,
    progress: Progress,
    *,
    what: str,
    judge: Judge | None = None,
    judge_id: str = "",
    folder: Path | None,
) -> Trained:
    """Train, or go on where an earlier run of the same training stopped.

    Args:
        task: what.
        progress: told after each epoch.
        what: what it is told.
        judge: asked about the tensor after each epoch; what it says is kept with the state.
        judge_id: what its answers depend on, beside the tensor.
        folder: keeps the state after each epoch; None keeps nothing.
    """
    kept = None if folder is None else folder / _FOLDER / f"{_identity(task, judge_id)}.pt"
    state = _State(task.start) if kept is None else _read(kept, task.start)
    if judge is not None and not state.judged:
        state.judged.append(judge(state.weights.detach()))
    for epoch in range(len(state.losses), task.epochs):
        progress(what, epoch, task.epochs)
        state.losses.append(_one_epoch(task, state, epoch))
        if judge is not None:
            state.judged.append(judge(state.weights.detach()))
        if kept is not None:
            _write(kept, state, is_last=epoch + 1 == task.epochs)
    progress(what, task.epochs, task.epochs)
    return Trained(weights=state.weights.detach().clone(), losses=state.losses, judged=state.judged)


def train_keys(
    training: Training,
    progress: Progress,
    *,
    what: str,
    judge: Judge | None = None,
    judge_id: str = "",
    folder: Path | None,
) -> Trained:
    """Train the keys of a cache; see `train`."""
    photos, text = training.photos, training.text
    views = photos.views

    def loss(keys: torch.Tensor, rows: torch.Tensor, epoch: int) -> torch.Tensor:
        image = (views[:, epoch % views.shape[1]] if views.numel() else photos.keys)[rows]
        weights = (BETA * (image @ keys.T - 1)).exp()
        cached = weights.new_zeros(len(rows), len(text)).index_add(1, photos.labels, weights)
        logits = training.scale * image @ text.T + training.bias + ALPHA * cached
        return functional.cross_entropy(logits, photos.labels[rows])

    numbers = torch.tensor([ALPHA, BETA, training.scale, training.bias], dtype=torch.float64)
    task = Task(
        start=photos.keys,
        photos=len(photos.keys),
        loss=loss,
        identity=digest(numbers, photos.labels, photos.keys, photos.views, text),
        epochs=training.epochs,
    )
    return train(task, progress, what=what, judge=judge, judge_id=judge_id, folder=folder)


class _State:
    """The tensor, its optimiser, and what is known of the epochs so far."""

    def __init__(self, weights: torch.Tensor) -> None:
        self.weights = torch.nn.Parameter(weights.clone())
        self.optimiser = torch.optim.AdamW([self.weights], lr=LEARNING_RATE, eps=EPS)
        self.losses: list[float] = []
        self.judged: list[torch.Tensor] = []


def _one_epoch(task: Task, state: _State, epoch: int) -> float:
    """The mean loss over all photos."""
    order = torch.randperm(task.photos, generator=torch.Generator().manual_seed(epoch))
    batches = torch.split(order, BATCH)
    total = 0.0
    with torch.enable_grad():
        for number, rows in enumerate(batches):
            step = epoch * len(batches) + number
            state.optimiser.param_groups[0]["lr"] = (
                LEARNING_RATE * (1 + math.cos(math.pi * step / (EPOCHS * len(batches)))) / 2
            )
            loss = task.loss(state.weights, rows, epoch)
            state.optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            state.optimiser.step()
            total += float(loss.detach()) * len(rows)
    return total / task.photos


def settings_judge(
    held: PhotoFeatures, labels: torch.Tensor, zero_shot: torch.Tensor, alphas: torch.Tensor, betas: torch.Tensor
) -> Judge:
    """Judge keys by which of some photos they classify rightly: keys -> bool [betas, alphas, photos].

    Args:
        held: the photos, which the keys were not trained on.
        labels: int64 [M], class index of each key.
        zero_shot: float32 [N,K], the plain classifier's logits of these photos.
        alphas: weights of the cache to try.
        betas: its sharpnesses to try.
    """

    def judge(keys: torch.Tensor) -> torch.Tensor:
        affinity = held.plain @ keys.T
        right = torch.empty(len(betas), len(alphas), len(held.labels), dtype=torch.bool)
        for row, beta in enumerate(betas.tolist()):
            cached = cache_logits(affinity, labels, beta, zero_shot.shape[1])
            for column, alpha in enumerate(alphas.tolist()):
                right[row, column] = torch.add(zero_shot, cached, alpha=alpha).argmax(dim=1) == held.labels
        return right

    return judge


def digest(*tensors: torch.Tensor) -> str:
    """Of their values."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(repr((tensor.dtype, tuple(tensor.shape))).encode())
        found.update(tensor.detach().contiguous().numpy().data)
    return found.hexdigest()


def _identity(task: Task, judge_id: str) -> str:
    return key_of(
        recipe=_RECIPE,
        numbers=[EPOCHS, task.epochs, LEARNING_RATE, EPS, BATCH],
        task=task.identity,
        judge=judge_id,
        torch=torch.__version__,
    )


def _read(path: Path, start: torch.Tensor) -> _State:
    """The state that was kept, or a fresh one: a damaged file costs time and nothing else."""
    with contextlib.suppress(*_UNREADABLE):
        document: dict[str, Any] = torch.load(path, weights_only=True)
        state = _State(document["weights"])
        if document["optimiser"] is not None:
            state.optimiser.load_state_dict(document["optimiser"])
        state.losses, state.judged = document["losses"], document["judged"]
        return state
    return _State(start)


def _write(path: Path, state: _State, *, is_last: bool) -> None:
    """Keep the state: a run that is killed while it writes finds the one before."""
    document = {
        "weights": state.weights.detach(),
        "optimiser": None if is_last else state.optimiser.state_dict(),
        "losses": state.losses,
        "judged": state.judged,
    }
    partial = path.with_suffix(".partial")
    # A full disk must not end a training that does not need the file to go on.
    with contextlib.suppress(OSError, RuntimeError):
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(document, partial)
        partial.replace(path)
