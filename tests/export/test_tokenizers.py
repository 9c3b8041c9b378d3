"""Exported tokenizers give open_clip's ids, token for token, whatever the text."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calipso_export.tokenizers import write_tokenizer
from calipso_runtime.errors import ModelError
from calipso_runtime.tokenizer import Tokenizer

CLEANINGS = ("lower", "whitespace", "canonicalize")
START, END = "<start_of_text>", "<end_of_text>"
NASTY = (
    "",
    " ",
    "\0",
    "a\0b",
    "a photo of a tulip.",
    "it's they're I've I'm he'll she'd 'S 'T 'RE '\u017f o'clock ''s",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f3f3\ufe0f\u200d\U0001f308 \U0001f1ea\U0001f1fa",
    "\U0001f44d\U0001f3fd\U0001f44d\ufe0f\u20e3 1\ufe0f\u20e3",
    "e\u0301 \u00e9 n\u0303 Z\u0351\u036b\u0343\u036a\u0302\u036b\u033d\u034f\u0334\u0319\u0324\u031eA\u0349\u035aLGO",
    "!\u0345! \u0345 a\u0345b &#837; !&#837;!",
    "&amp;amp;lt;b&amp;amp;gt; &amp;amp;amp;amp; &lt;3 &nbsp; &#x1F600; &#128512;",
    "&notanentity; &amp &#xD83D; &#0; &#x110000;",
    "\u00c3\u00a9t\u00c3\u00a9 \u00e2\u20ac\u02dcquoted\u00e2\u20ac\u2122",
    "\u201ccurly\u201d \ufb01ne \uff26\uff35\uff2c\uff2c",
    "\x1b[31mred\x1b[0m \x07\x08\x7f\x85\x9f \ufeffmark \ufffd \ufffe \uffff",
    "\t\n\v\f\r\x1c\x1d\x1e\x1f\u00a0\u1680\u2000\u200a\u2028\u2029\u202f\u205f\u3000\u200b\u2060\u180ex",
    "\u6771\u4eac\u90fd\u306e\u5199\u771f \ud55c\uad6d\uc5b4 \u4e2d\u6587\uff0c\u6807\u70b9\u3002",
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 \u202eabc\u202c \u200fx \u0661\u0662\u0663",
    "\u0967\u0968\u0969 \u00b2\u00bd\u2167 \U0001d7d8 12345 3.14 1,000",
    "\u0130stanbul I\u0131 \u00df\u1e9e \u03a3\u0391\u03a3 \u039f\u0394\u039f\u03a3. \u01c5 \ufb06 \u212a",
    f"{START} a {END}",
    f"a{START}b{END}{END}c !{START} ?{END}. <{START}> 1{START}",
    "<START_OF_TEXT> <\u017ftart_of_text> <start_of_tex <end_of_text",
    "&lt;start_of_text&gt; &amp;lt;end_of_text&amp;gt;",
    "</w> a</w>b \u0120a \u010a </s> <pad> [SEP]",
    "lone \ud800 and \udfff and \udbff\udfff",
    "x" * 10_000,
    "xyz " * 2_500,
    "?!" * 5_000,
    "\u6771" * 10_000,
    "\U0001f600" * 10_000,
    f"{START} " * 100,
    "a " * 75,
    "a " * 76,
)


def exported(theirs: Any, folder: Path) -> Tokenizer:
    settings = write_tokenizer(theirs, folder / "tokenizer.json")
    return Tokenizer.from_file(folder / "tokenizer.json", settings.as_json())


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Tokenizer]:
    """open_clip's tokenizer of most models, and what was exported of it."""
    theirs = open_clip.get_tokenizer("ViT-B-32")
    return theirs, exported(theirs, tmp_path_factory.mktemp("clip"))


def assert_equal(theirs: Any, ours: Tokenizer, texts: list[str]) -> None:
    wanted, found = theirs(texts).numpy(), ours(texts)

    different = [texts[row] for row in np.flatnonzero((wanted != found).any(axis=1))]
    assert different == []
    assert found.dtype == wanted.dtype


# Where characters are assigned; the other planes are all the same, to all who ask.
ASSIGNED_PLANES = (0, 1, 2, 3, 14)


def code_points() -> Iterator[str]:
    """Every one that there can be, between others of its kind or of another."""
    for first in range(0, 0x110000, 16):
        block = [chr(point) for point in range(first, first + 16)]
        yield " a".join(block)
        if first >> 16 in ASSIGNED_PLANES:
            yield "!".join(block)
            # An entity brings a character past the normalisation that comes first.
            yield "".join(f"&amp;#{ord(each)};" for each in block)


@pytest.mark.parametrize("clean", CLEANINGS)
@pytest.mark.parametrize("length", [77, pytest.param(16, marks=pytest.mark.slow)])
def test_nasty_texts_have_open_clips_ids(tmp_path: Path, clean: str, length: int) -> None:
    theirs = open_clip.SimpleTokenizer(clean=clean, context_length=length)

    assert_equal(theirs, exported(theirs, tmp_path), list(NASTY))


@pytest.mark.slow
def test_every_code_point_of_the_basic_plane_has_open_clips_ids(clip: tuple[Any, Tokenizer]) -> None:
    assert_equal(*clip, ["".join(map(chr, range(first, first + 8))) for first in range(0, 0x10000, 8)])


@pytest.mark.slow
def test_every_code_point_has_open_clips_ids(tmp_path: Path) -> None:
    # Long enough that nothing is cut: every character is compared.
    theirs = open_clip.SimpleTokenizer(context_length=150)
    ours, texts = exported(theirs, tmp_path), list(code_points())

    for start in range(0, len(texts), 20_000):
        some = texts[start : start + 20_000]
        assert_equal(theirs, ours, some)
        assert ours.encode(some, truncation="silent").cut == ()


@given(text=st.text(st.characters(codec=None), max_size=60))
def test_any_text_has_open_clips_ids(clip: tuple[Any, Tokenizer], text: str) -> None:
    assert_equal(*clip, [text])


PIECES = st.sampled_from(
    [START, END, "<", ">", "'s", "'", "\u017f", "a", "Photo", "1", "\u0345", " ", "&lt;", "&", "_"]
)


@given(pieces=st.lists(PIECES, max_size=20))
def test_any_mixture_of_what_is_special_has_open_clips_ids(clip: tuple[Any, Tokenizer], pieces: list[str]) -> None:
    assert_equal(*clip, ["".join(pieces)])


@given(words=st.integers(60, 90), tail=st.text(max_size=10))
def test_texts_about_as_long_as_the_context_have_open_clips_ids(
    clip: tuple[Any, Tokenizer], words: int, tail: str
) -> None:
    assert_equal(*clip, ["word " * words + tail])


def test_additional_special_tokens_are_known(tmp_path: Path) -> None:
    theirs = open_clip.SimpleTokenizer(additional_special_tokens=["<mask>", "maybe_not"])

    assert_equal(theirs, exported(theirs, tmp_path), ["a <mask> b!<mask>", "maybe_not maybe_nots", *NASTY[:20]])


def test_special_tokens_that_open_clip_reads_as_an_expression_are_refused(tmp_path: Path) -> None:
    theirs = open_clip.SimpleTokenizer(additional_special_tokens=["[mask]"])

    with pytest.raises(ModelError, match=r"splits words by .*\[mask\].*: only open_clip's own can be exported"):
        write_tokenizer(theirs, tmp_path / "tokenizer.json")


@pytest.mark.parametrize("reduction", ["simple", "random", "shuffle"])
def test_a_tokenizer_that_drops_tokens_at_random_is_refused(tmp_path: Path, reduction: str) -> None:
    theirs = open_clip.SimpleTokenizer(reduction_mask=reduction)

    with pytest.raises(ModelError, match="drops tokens at random"):
        write_tokenizer(theirs, tmp_path / "tokenizer.json")
    assert list(tmp_path.iterdir()) == []


def test_the_same_tokenizer_is_the_same_file(tmp_path: Path) -> None:
    one, other = (write_tokenizer(open_clip.SimpleTokenizer(), tmp_path / name) for name in ("one.json", "other.json"))

    assert one == other
