"""Draws the training pictures of the shapes example once, into arrays that training then reads.

Drawing costs about as much as training on a picture does, so each is drawn once and seen several times, shifted a
little and with another caption. Picture number i is the same whatever is drawn before it and in how many processes.
"""

import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from calipso_export.torchvision_ops import ensure_torchvision_imports
from draw import draw
from world import Spec, caption, sample_training_spec

ensure_torchvision_imports()  # before anything imports open_clip, here and in every process that draws

from open_clip import SimpleTokenizer  # noqa: E402

IMAGE_SIDE_PX = 64
CAPTIONS_PER_PICTURE = 4
CONTEXT_LENGTH = 28
TRAINING_STREAM, VALIDATION_STREAM = 10, 11
"""Numbers that keep the random streams of training and validation apart from each other and the demo task's."""
_CHUNK = 250


@dataclass(frozen=True)
class Pictures:
    """Drawn pictures, uint8 of n x side x side x 3, and the tokens of their captions, n x captions x context."""

    pixels: NDArray[np.uint8]
    tokens: NDArray[np.uint16]


def picture_and_captions(
    seed: int, stream: int, index: int, captions: int = CAPTIONS_PER_PICTURE
) -> tuple[Spec, NDArray[np.uint8], list[str]]:
    """Picture number `index` of a stream: what it is, its pixels at the model's size, and its captions."""
    rng = np.random.default_rng([seed, stream, index])
    spec = sample_training_spec(rng)
    texts = [caption(spec, rng) for _ in range(captions)]
    small = draw(spec, rng).resize((IMAGE_SIDE_PX, IMAGE_SIDE_PX), Image.Resampling.BICUBIC)
    return spec, np.asarray(small), texts


def _draw_chunk(job: tuple[int, int, int, int]) -> tuple[NDArray[np.uint8], list[list[str]]]:
    seed, stream, start, stop = job
    drawn = [picture_and_captions(seed, stream, index) for index in range(start, stop)]
    return np.stack([pixels for _, pixels, _ in drawn]), [texts for _, _, texts in drawn]


def draw_pictures(count: int, seed: int, stream: int) -> Pictures:
    """Draw `count` pictures of a stream in as many processes as there are cores."""
    jobs = [(seed, stream, start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]
    pixels = np.empty((count, IMAGE_SIDE_PX, IMAGE_SIDE_PX, 3), np.uint8)
    tokens = np.empty((count, CAPTIONS_PER_PICTURE, CONTEXT_LENGTH), np.uint16)
    # "spawn", because a forked copy of a process whose torch has started threads may hang.
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        chunks = tqdm(pool.map(_draw_chunk, jobs), total=len(jobs), desc="drawing", unit="chunk")
        for (_, _, start, stop), (chunk, texts) in zip(jobs, chunks, strict=True):
            pixels[start:stop] = chunk
            tokens[start:stop] = [tokenize_captions(several) for several in texts]
    return Pictures(pixels, tokens)


def load_or_draw(path: Path, count: int, seed: int, stream: int) -> Pictures:
    """Read the pictures from an .npz file, or draw them and write it."""
    if path.exists():
        with np.load(path) as stored:
            return Pictures(stored["pixels"], stored["tokens"])
    pictures = draw_pictures(count, seed, stream)
    partial = path.with_name("partial-" + path.name)
    np.savez(partial, pixels=pictures.pixels, tokens=pictures.tokens)
    partial.replace(path)
    return pictures


def tokenize_captions(texts: Iterable[str]) -> NDArray[np.uint16]:
    """What open_clip's stock tokenizer gives, but looking each word up only once.

    Raises:
        ValueError: If a caption is longer than the model's context.
    """
    rows = []
    for text in texts:
        words = text.replace(".", " .").split()
        row = [_tokenizer().sot_token_id, *(t for word in words for t in _word_tokens(word)), _tokenizer().eot_token_id]
        if len(row) > CONTEXT_LENGTH:
            msg = f"Caption {text!r} has {len(row)} tokens: expected at most {CONTEXT_LENGTH}."
            raise ValueError(msg)
        rows.append(row + [0] * (CONTEXT_LENGTH - len(row)))
    return np.array(rows, dtype=np.uint16)


@cache
def _tokenizer() -> SimpleTokenizer:
    return SimpleTokenizer(context_length=CONTEXT_LENGTH)


@cache
def _word_tokens(word: str) -> tuple[int, ...]:
    return tuple(_tokenizer().encode(word))
