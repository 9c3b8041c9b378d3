"""Tests of the shapes example: its drawings, its demo task, its training and the models that the repository ships."""

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch

import shapes_model
import train as training
from adapt import accuracy, cache_logits, text_weights
from cache import TRAINING_STREAM, VALIDATION_STREAM, draw_pictures, picture_and_captions, tokenize_captions
from draw import draw, draw_demo_picture, write_task
from evaluate import TEMPLATES, read_task
from forms import form
from train import Settings, main, train, training_record
from world import (
    COLOURS,
    DEMO_CLASSES,
    GROUNDS,
    HELD_OUT,
    SHAPES,
    TEXTURES,
    UNSEEN_COLOURS,
    UNSEEN_SHAPES,
    Spec,
    caption,
    sample_training_spec,
)

MODELS = Path(__file__).resolve().parents[2] / "models"
SHIPPED = sorted(path.parent for path in MODELS.glob("shapes-*/*.safetensors"))
LARGEST_FILE_BYTES = 10_000_000
LARGE_SAMPLE = 20_000
ACCURACY_TOLERANCE_POINTS = 6.0
"""Three standard errors of the smaller sample's accuracy are below this."""
TINY = Settings("vit", steps=24, batch=32, pictures=512, seed=3, peak_learning_rate=1e-3, warmup_steps=4)


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_equal_seeds_draw_equal_bytes(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_task(tmp_path / name, shots=2, held_out=1, seed=5)
    write_task(tmp_path / "other", shots=2, held_out=1, seed=6)
    assert digests(tmp_path / "first") == digests(tmp_path / "second")
    assert digests(tmp_path / "first") != digests(tmp_path / "other")


def test_a_picture_does_not_depend_on_how_many_are_drawn(tmp_path: Path) -> None:
    write_task(tmp_path / "few", shots=1, held_out=1, seed=0)
    write_task(tmp_path / "more", shots=2, held_out=2, seed=0)
    few, more = digests(tmp_path / "few"), digests(tmp_path / "more")
    assert few.items() <= more.items()


def test_shots_and_held_out_pictures_differ() -> None:
    name = next(iter(DEMO_CLASSES))
    shot, held_out = (draw_demo_picture(name, 0, 0, held_out=flag) for flag in (False, True))
    assert shot.tobytes() != held_out.tobytes()


def test_the_training_stream_holds_no_held_out_combination_and_no_held_out_word() -> None:
    rng = np.random.default_rng(0)
    words = re.compile("|".join((*UNSEEN_SHAPES, *UNSEEN_COLOURS)))
    for _ in range(LARGE_SAMPLE):
        spec = sample_training_spec(rng)
        assert (spec.colour, spec.texture, spec.shape) not in HELD_OUT
        assert spec.shape in SHAPES
        assert spec.colour in COLOURS
        assert not words.search(caption(spec, rng))


def test_the_training_stream_holds_every_other_combination() -> None:
    rng = np.random.default_rng(1)
    seen = {(s.colour, s.texture, s.shape) for s in (sample_training_spec(rng) for _ in range(LARGE_SAMPLE))}
    assert len(seen) == len(COLOURS) * len(TEXTURES) * len(SHAPES) - sum(
        c[0] in COLOURS and c[2] in SHAPES for c in HELD_OUT
    )


def test_the_demo_task_has_pairs_that_differ_in_one_attribute_and_words_that_training_lacks() -> None:
    combinations = list(DEMO_CLASSES.values())
    close = [(a, b) for a in combinations for b in combinations if sum(x != y for x, y in zip(a, b, strict=True)) == 1]
    assert len(close) // 2 >= 10
    assert {shape for _, _, shape in combinations} >= set(UNSEEN_SHAPES)
    assert {colour for colour, _, _ in combinations} >= set(UNSEEN_COLOURS)
    assert not set(UNSEEN_SHAPES) & set(SHAPES)
    assert not set(UNSEEN_COLOURS) & set(COLOURS)


def test_the_new_words_share_no_token_with_the_words_of_training() -> None:
    rng = np.random.default_rng(2)
    known = set(tokenize_captions(caption(sample_training_spec(rng), rng) for _ in range(LARGE_SAMPLE)).flat)
    for word in (*UNSEEN_SHAPES, *UNSEEN_COLOURS):
        assert set(tokenize_captions([word]).flat) - known, word


def test_write_task_writes_what_it_says(tmp_path: Path) -> None:
    write_task(tmp_path / "task", shots=3, held_out=2, seed=0)
    names = (tmp_path / "task" / "classes.txt").read_text(encoding="utf-8").splitlines()
    assert names == list(DEMO_CLASSES)
    for part, count in (("shots", 3), ("held-out", 2)):
        assert sorted(folder.name for folder in (tmp_path / "task" / part).iterdir()) == sorted(names)
        assert all(len(list((tmp_path / "task" / part / name).glob("*.png"))) == count for name in names)
    assert [path.name for path in tmp_path.iterdir()] == ["task"]


def test_the_demo_task_has_pictures_that_are_not_square() -> None:
    name = next(iter(DEMO_CLASSES))
    sizes = {draw_demo_picture(name, index, 0, held_out=True).size for index in range(30)}
    assert (96, 96) in sizes
    assert any(width != height for width, height in sizes)


def test_write_task_refuses_an_existing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match="--overwrite"):
        write_task(tmp_path, shots=1, held_out=1, seed=0)


def test_write_task_refuses_a_negative_count(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shots is -1"):
        write_task(tmp_path / "task", shots=-1, held_out=1, seed=0)


@pytest.mark.parametrize("shape", SHAPES + UNSEEN_SHAPES)
@pytest.mark.parametrize("texture", TEXTURES)
def test_every_shape_is_drawn_in_its_colour_in_every_texture(shape: str, texture: str) -> None:
    spec = Spec("red", texture, shape, GROUNDS[0], "black", 0.4, (0.0, 0.0), 0.0, (96, 96))
    pixels = np.asarray(draw(spec, np.random.default_rng(0))).astype(int)
    reddish = (pixels[..., 0] - pixels[..., 1] > 60).mean()
    assert 0.02 < reddish < 0.6


def test_an_unknown_shape_is_named_in_the_error() -> None:
    with pytest.raises(ValueError, match="'teapot'"):
        form("teapot")


def test_captions_are_tokenized_as_the_stock_tokenizer_does() -> None:
    texts = [text for index in range(50) for text in picture_and_captions(0, VALIDATION_STREAM, index)[2]]
    tokenizer = open_clip.SimpleTokenizer(context_length=tokenize_captions([""]).shape[1])
    assert np.array_equal(tokenize_captions(texts), tokenizer(texts).numpy())


def test_a_caption_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="tokens: expected at most"):
        tokenize_captions(["a very " * 30 + "long caption"])


def test_the_loss_curve_stays_short() -> None:
    losses = [1.0] * 1234
    record = training_record(torch.nn.Linear(1, 1), TINY, losses, 60.0)
    assert len(record["loss_curve"]) <= 200
    assert record["loss_curve"][-1][0] == len(losses)


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_a_shipped_model_is_small_and_loads_strictly(folder: Path) -> None:
    weights = folder / f"{folder.name}.safetensors"
    assert weights.stat().st_size <= LARGEST_FILE_BYTES
    model = shapes_model.build(folder)
    result = open_clip.load_checkpoint(model, str(weights), strict=True)
    assert not result.missing_keys
    assert not result.unexpected_keys


@pytest.mark.slow
@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_a_shipped_model_classifies_a_fresh_demo_task_as_well_as_published(folder: Path, tmp_path: Path) -> None:
    published = json.loads((folder / "training.json").read_text(encoding="utf-8"))["held_out"]["demo_task"]
    model: Any
    model, transform, tokenizer = shapes_model.load(folder)
    write_task(tmp_path / "task", shots=16, held_out=24, seed=7)
    shots, held_out = (read_task(tmp_path / "task", part, model, transform) for part in ("shots", "held-out"))
    weights = text_weights(model, tokenizer, list(DEMO_CLASSES), TEMPLATES)
    base = float(model.logit_scale.detach().exp()) * held_out.pooled @ weights.T
    expected = published["zero_shot"]["top1_percent"]
    assert accuracy(base, held_out.labels) == pytest.approx(expected, abs=ACCURACY_TOLERANCE_POINTS)

    tip = published["tip_adapter"]
    logits = base + tip["alpha"] * cache_logits(shots, held_out, len(DEMO_CLASSES), tip["beta"])
    assert accuracy(logits, held_out.labels) == pytest.approx(tip["top1_percent"], abs=ACCURACY_TOLERANCE_POINTS)


def test_a_missing_model_is_named_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"Run train\.py first"):
        shapes_model.load(tmp_path / "absent")


def test_resuming_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="--resume"):
        train(tmp_path / "model", TINY, resume=True)


@pytest.mark.slow
def test_the_pictures_drawn_do_not_depend_on_the_number_of_processes() -> None:
    pictures = draw_pictures(300, 2, TRAINING_STREAM)
    for index in (0, 251, 299):
        assert np.array_equal(pictures.pixels[index], picture_and_captions(2, TRAINING_STREAM, index)[1])


@pytest.mark.slow
def test_training_reduces_the_loss_and_an_interrupted_run_resumes_to_the_same_losses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = train(tmp_path / "whole" / "tiny", TINY)
    assert np.mean(losses[-4:]) < np.mean(losses[:4])

    monkeypatch.setattr(training, "_CHECKPOINT_EVERY", 10)
    schedule = training.learning_rate
    calls: list[int] = []

    def interrupted(step: int, settings: Settings) -> float:
        calls.append(step)
        if len(calls) == 15:
            raise KeyboardInterrupt
        return schedule(step, settings)

    monkeypatch.setattr(training, "learning_rate", interrupted)
    out = tmp_path / "parts" / "tiny"
    with pytest.raises(KeyboardInterrupt):
        train(out, TINY)
    with pytest.raises(FileExistsError, match="--resume"):
        train(out, TINY)
    assert train(out, TINY, resume=True) == pytest.approx(losses, abs=1e-2)
    assert calls[15] == 10
    assert not out.with_name("tiny.work").exists()


@pytest.mark.slow
def test_training_gives_the_process_its_denormal_numbers_back(tmp_path: Path) -> None:
    train(tmp_path / "tiny", dataclasses.replace(TINY, steps=1))
    assert float(np.float64(5e-324)) > 0


@pytest.mark.slow
@pytest.mark.parametrize("architecture", shapes_model.ARCHITECTURES)
def test_the_command_line_trains_a_loadable_model_of_every_architecture(architecture: str, tmp_path: Path) -> None:
    out = tmp_path / f"quick-{architecture}"
    main(["--out", str(out), "--arch", architecture, "--steps", "3", "--batch", "16", "--pictures", "64"])
    model, _, tokenizer = shapes_model.load(out)
    weights = text_weights(model, tokenizer, list(DEMO_CLASSES), TEMPLATES)
    assert torch.isfinite(weights).all()
    assert (out / f"{out.name}.safetensors").stat().st_size <= LARGEST_FILE_BYTES
