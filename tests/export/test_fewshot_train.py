"""Training keys: the published recipe, the same bits after an interruption, and chosen on photos held out."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from calipso_export.fewshot import train
from calipso_export.fewshot.features import PhotoFeatures
from calipso_export.fewshot.folds import folds
from calipso_export.fewshot.train import Training, train_keys
from calipso_export.heads.few_shot import Shots
from calipso_export.heads.tip_adapter_f import TipAdapterF
from calipso_export.progress import Progress, silent
from calipso_runtime.errors import ShotsError


def photos_near_centres(counts: tuple[int, ...], seed: int = 0, views: int = 3, width: int = 16) -> PhotoFeatures:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    centres = torch.randn(len(counts), width, generator=generator)

    def near(*shape: int) -> torch.Tensor:
        noise = torch.randn(len(labels), *shape, width, generator=generator)
        return functional.normalize((centres[labels] if not shape else centres[labels][:, None]) + noise, dim=-1)

    return PhotoFeatures(
        labels=labels,
        contents=torch.arange(len(labels)),
        keys=near(),
        plain=near(),
        calip=torch.empty(len(labels), 0, len(counts)),
        views=near(views),
    )


@pytest.fixture
def training() -> Training:
    photos = photos_near_centres((4, 5, 4))
    text = functional.normalize(torch.randn(3, 16, generator=torch.Generator().manual_seed(7)), dim=1)
    return Training(photos=photos, text=text, scale=5.0, bias=-1.0)


def interrupt(epoch: int) -> Progress:
    """Ctrl-C, when that epoch is about to begin."""

    def report(_what: str, done: int, _total: int) -> None:
        if done == epoch:
            raise KeyboardInterrupt

    return report


def run(training: Training, folder: Path | None, progress: Progress = silent) -> train.Trained:
    return train_keys(training, progress, what="training", judge=lambda keys: keys.sum(dim=1) > 0, folder=folder)


def test_the_keys_are_trained_by_the_published_recipe(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "BATCH", 5)
    photos, text = training.photos, training.text
    layer = torch.nn.Linear(16, 13, bias=False)
    layer.weight = torch.nn.Parameter(photos.keys.clone())
    optimiser = torch.optim.AdamW(layer.parameters(), lr=1e-3, eps=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 20 * 3)
    values = functional.one_hot(photos.labels, 3).float()
    losses = []
    for epoch in range(20):
        total = 0.0
        for rows in torch.randperm(13, generator=torch.Generator().manual_seed(epoch)).split(5):
            image = photos.views[rows, epoch % 3]
            cached = (-1.0 * (1 - layer(image))).exp() @ values
            loss = functional.cross_entropy(5.0 * image @ text.T - 1.0 + 1.17 * cached, photos.labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += len(rows) * loss.item()
        losses.append(total / 13)

    trained = train_keys(training, silent, what="training", folder=None)

    torch.testing.assert_close(trained.weights, layer.weight.detach(), atol=1e-6, rtol=1e-6)
    assert trained.losses == pytest.approx(losses, rel=1e-5)
    assert not torch.allclose(trained.weights.norm(dim=1), torch.ones(13), atol=1e-3)


@pytest.mark.parametrize("epoch", [0, 1, 7, 19])
def test_an_interrupted_training_goes_on_and_ends_with_the_same_bits(
    training: Training, tmp_path: Path, epoch: int
) -> None:
    whole = run(training, None)
    with pytest.raises(KeyboardInterrupt):
        run(training, tmp_path, interrupt(epoch))
    begun: list[int] = []

    resumed = run(training, tmp_path, lambda _what, done, _total: begun.append(done))

    assert begun == [*range(epoch, 20), 20]
    assert torch.equal(resumed.weights, whole.weights)
    assert resumed.losses == whole.losses
    assert torch.equal(torch.stack(resumed.judged), torch.stack(whole.judged))


def test_a_finished_training_is_not_run_again(training: Training, tmp_path: Path) -> None:
    first = run(training, tmp_path)

    again = run(training, tmp_path, interrupt(0))

    assert torch.equal(again.weights, first.weights)


@pytest.mark.parametrize(
    "changes", [{"scale": 6.0}, {"bias": 0.0}, {"epochs": 3}, {"text": torch.eye(3, 16)}, {"photos": None}]
)
def test_another_training_does_not_take_the_state_of_this_one(
    training: Training, tmp_path: Path, changes: dict[str, object]
) -> None:
    run(training, tmp_path)
    if "photos" in changes:
        changes = {"photos": dataclasses.replace(training.photos, views=-training.photos.views)}
    other = dataclasses.replace(training, **changes)

    assert torch.equal(run(other, tmp_path).weights, run(other, None).weights)


@pytest.mark.parametrize("damage", [b"", b"no archive", None])
def test_a_damaged_state_costs_time_and_nothing_else(training: Training, tmp_path: Path, damage: bytes | None) -> None:
    whole = run(training, tmp_path)
    (state,) = tmp_path.rglob("*.pt")
    state.write_bytes(state.read_bytes()[: state.stat().st_size // 2] if damage is None else damage)

    assert torch.equal(run(training, tmp_path).weights, whole.weights)


def test_a_folder_that_cannot_be_written_does_not_end_the_training(training: Training, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    assert torch.equal(run(training, tmp_path / "file").weights, run(training, None).weights)


def shots(counts: tuple[int, ...], folder: Path | None = None) -> Shots:
    photos = photos_near_centres(counts)
    text = functional.normalize(torch.ones(len(counts), 16), dim=1)
    names = tuple(f"class {index}" for index in range(len(counts)))
    return Shots(photos=photos, text=text, scale=10.0, bias=0.0, classes=names, folder=folder)


def test_epoch_alpha_and_beta_are_the_best_on_the_photos_held_out() -> None:
    own = shots((6, 6, 6))

    fit = TipAdapterF.fit(own, silent)

    best = fit.record["best"]
    head = fit.head
    assert isinstance(head, TipAdapterF)
    said = fit.held_out(torch.arange(18))
    accuracy = float(((own.zero_shot(own.photos) + said).argmax(dim=1) == own.photos.labels).double().mean())
    assert accuracy == pytest.approx(fit.record["accuracy_with"])
    assert head.parameters_by_name() == {"alpha": best["alpha"], "beta": best["beta"]}
    at_epoch = next(point for point in fit.curve if point["epoch"] == best["epoch"])
    assert at_epoch["accuracy"] == max(point["accuracy"] for point in fit.curve) == fit.record["accuracy_with"]


def test_the_curve_has_the_untrained_keys_and_every_epoch_with_its_loss() -> None:
    curve = TipAdapterF.fit(shots((4, 4)), silent).curve

    assert [point["epoch"] for point in curve] == list(range(21))
    assert ["loss" in point for point in curve] == [False] + 20 * [True]
    assert all(math.isfinite(point["loss"]) for point in curve[1:])
    assert curve[-1]["loss"] < curve[1]["loss"]


def test_labels_of_validation_photos_choose_and_never_train() -> None:
    own = shots((5, 5, 5))
    held = photos_near_centres((3, 3, 3), seed=0)
    fits = [
        TipAdapterF.fit(dataclasses.replace(own, validation=validation), silent)
        for validation in (held, dataclasses.replace(held, labels=held.labels.roll(3)))
    ]

    assert [point.get("loss") for point in fits[0].curve] == [point.get("loss") for point in fits[1].curve]
    assert fits[0].record["accuracy_with"] != fits[1].record["accuracy_with"]


@pytest.mark.parametrize("counts", [(2, 2), (3, 7, 4), (16, 5, 9, 12)])
def test_every_photo_is_in_one_fold_and_every_class_in_all_others(counts: tuple[int, ...]) -> None:
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))

    found = folds(labels, torch.arange(len(labels)), [str(index) for index in range(len(counts))])

    assert len(found) == min(5, *counts)
    assert sorted(torch.cat(found).tolist()) == list(range(len(labels)))
    for held in found:
        kept = torch.bincount(labels, minlength=len(counts)) - torch.bincount(labels[held], minlength=len(counts))
        assert int(kept.min()) > 0
    sizes = [len(held) for held in found]
    assert max(sizes) - min(sizes) <= 1


def test_copies_of_a_photo_are_in_one_fold() -> None:
    labels = torch.tensor([0] * 6 + [1] * 4)
    contents = torch.tensor([0, 0, 0, 1, 2, 2, 3, 4, 5, 5])

    found = folds(labels, contents, ["ant", "bee"])

    assert len(found) == 3
    for content in contents.unique():
        assert sum(bool((contents[held] == content).any()) for held in found) == 1


def test_a_class_with_copies_of_one_photo_only_is_named() -> None:
    with pytest.raises(ShotsError, match=r"one photo only of 'bee': .* Add photos"):
        folds(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 2, 2]), ["ant", "bee"])
