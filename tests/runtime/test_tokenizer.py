"""Texts to token ids with `tokenizers` alone: the file, its settings, cutting and padding."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calipso_runtime.errors import (
    BackendUnavailableError,
    BundleCorruptError,
    BundleNotFoundError,
    BundleSchemaError,
    CalipsoWarning,
    InputError,
)
from calipso_runtime.tokenizer import Tokenizer

pytest.importorskip("tokenizers", reason="reads tokenizer files")
pytest.importorskip("ftfy", reason="cleans texts")

VOCAB = {"a": 0, "bee": 1, "<s>": 2, "</s>": 3, "?": 4, "<pad>": 5}
LENGTH = 6
Make = Callable[..., tuple[Path, dict[str, Any]]]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A tokenizer of whole words, as a file, and settings that fit it."""

    def made(**changes: Any) -> tuple[Path, dict[str, Any]]:
        document = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [],
            "normalizer": None,
            "pre_tokenizer": {"type": "Split", "pattern": {"Regex": r"[^ ]+"}, "behavior": "Removed", "invert": True},
            "post_processor": None,
            "decoder": None,
            "model": {"type": "WordLevel", "vocab": VOCAB, "unk_token": "?"},
        }
        path = tmp_path / "tokenizer.json"
        path.write_text(json.dumps(document))
        settings = {
            "kind": "clip",
            "clean": "lower",
            "context_length": LENGTH,
            "vocab_size": len(VOCAB),
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "pad": 5,
            "start": 2,
            "end": 3,
            "literals": {"<s>": 2},
        }
        return path, {**settings, **changes}

    return made


@pytest.fixture
def tokenizer(make: Make) -> Tokenizer:
    return Tokenizer.from_file(*make())


def test_texts_become_padded_ids(tokenizer: Tokenizer) -> None:
    ids = tokenizer(["a bee", ""])

    assert ids.dtype == np.int64
    assert ids.tolist() == [[2, 0, 1, 3, 5, 5], [2, 3, 5, 5, 5, 5]]


def test_one_text_is_a_list_of_one(tokenizer: Tokenizer) -> None:
    assert tokenizer("a bee").tolist() == tokenizer(["a bee"]).tolist()


def test_a_word_that_spells_a_special_token_is_it(tokenizer: Tokenizer) -> None:
    assert tokenizer(["<s> bee a<s>"]).tolist() == [[2, 2, 1, 4, 3, 5]]


def test_a_text_as_long_as_the_context_keeps_its_end(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode(["a a a a"], truncation="error").ids.tolist() == [[2, 0, 0, 0, 0, 3]]


def test_a_longer_text_is_cut_and_ends_with_the_end(tokenizer: Tokenizer) -> None:
    assert tokenizer(["a a a a bee"]).tolist() == [[2, 0, 0, 0, 0, 3]]


def test_cut_texts_are_named_and_warned_of(tokenizer: Tokenizer) -> None:
    with pytest.warns(
        CalipsoWarning, match=r"2 of 3 texts have more tokens than the 6 .* is number 1: 'a a a a a a'\. They were cut"
    ):
        tokens = tokenizer.encode(["a", "a a a a a a", "bee " * 9])

    assert tokens.cut == (1, 2)


def test_cutting_can_be_silent(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode(["a " * 9], truncation="silent").cut == (0,)


def test_cutting_can_be_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match=r"1 of 2 texts .* is number 1: '(a ){30}\.\.\.'"):
        tokenizer.encode(["a", "a " * 900], truncation="error")


def test_an_unknown_truncation_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="truncation is 'loud': expected one of warn, silent, error"):
        tokenizer.encode(["a"], truncation="loud")


@pytest.mark.parametrize(
    ("texts", "wrong"),
    [
        ([], "there are no texts"),
        (["a", 3], "text 1 is of type int"),
        (["a", None], "text 1 is of type NoneType"),
        ([b"a"], "text 0 is of type bytes"),
        (b"a", "texts are of type bytes"),
        (None, "texts are of type NoneType"),
        (7, "texts are of type int"),
    ],
)
def test_what_is_no_text_is_refused(tokenizer: Tokenizer, texts: Any, wrong: str) -> None:
    with pytest.raises(InputError, match=wrong):
        tokenizer(texts)


def test_texts_may_be_numpys(tokenizer: Tokenizer) -> None:
    assert tokenizer(np.array(["a bee", "bee"])).tolist() == tokenizer(["a bee", "bee"]).tolist()


def test_more_texts_than_are_encoded_at_once_keep_their_order(tokenizer: Tokenizer) -> None:
    texts = [" ".join(["a", "bee"][: 1 + index % 2]) for index in range(2500)]

    assert tokenizer(texts).tolist() == [[2, 0, 3, 5, 5, 5], [2, 0, 1, 3, 5, 5]] * 1250


def test_a_file_adds_its_own_ends_where_it_has_them_and_may_be_padded_on_the_left(make: Make) -> None:
    tokenizer = Tokenizer.from_file(*make(kind="hf", pad_side="left", zeroed=1))

    assert tokenizer(["a bee", "a a a a a a a"]).tolist() == [[5, 5, 5, 5, 0, 0], [0] * 6]
    assert tokenizer.encode(["a", "a a a a a a a"], truncation="silent").cut == (1,)


def test_a_class_token_stands_at_the_end_of_the_context(make: Make) -> None:
    tokenizer = Tokenizer.from_file(*make(kind="clips", last=4))

    tokens = tokenizer.encode(["a", "bee a bee", "bee a bee a bee"], truncation="silent")

    assert tokens.ids.tolist() == [[2, 0, 3, 5, 5, 4], [2, 1, 0, 1, 3, 4], [2, 1, 0, 1, 3, 4]]
    assert tokens.cut == (2,)


@pytest.mark.parametrize(
    ("clean", "ids"),
    [("lower", [2, 0, 4, 1, 3, 5]), ("whitespace", [2, 0, 4, 4, 3, 5]), ("canonicalize", [2, 0, 1, 3, 5, 5])],
)
def test_texts_are_cleaned_as_the_settings_say(make: Make, clean: str, ids: list[int]) -> None:
    tokenizer = Tokenizer.from_file(*make(clean=clean))

    assert tokenizer(["\ta\u3000&amp;amp; BEE"]).tolist() == [ids]


def test_a_file_of_another_model_is_refused(make: Make) -> None:
    path, settings = make()
    path.write_text(path.read_text().replace("bee", "boa"))

    with pytest.raises(BundleCorruptError, match=r"tokenizer\.json is not this model's tokenizer: its sha256"):
        Tokenizer.from_file(path, settings)


def test_settings_of_another_vocabulary_are_refused(make: Make) -> None:
    with pytest.raises(BundleCorruptError, match=r"has 6 tokens, and its settings are of one with 7"):
        Tokenizer.from_file(*make(vocab_size=7))


def test_a_file_that_tokenizers_cannot_read_is_refused(make: Make) -> None:
    path, settings = make()
    path.write_text("{}")
    settings["sha256"] = hashlib.sha256(b"{}").hexdigest()

    with pytest.raises(BundleCorruptError, match="cannot be read by `tokenizers`"):
        Tokenizer.from_file(path, settings)


def test_a_missing_file_is_said(make: Make) -> None:
    path, settings = make()
    path.unlink()

    with pytest.raises(BundleNotFoundError, match=r"tokenizer\.json cannot be read: No such file"):
        Tokenizer.from_file(path, settings)


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"kind": "sp"}, "kind is 'sp': expected one of clip, hf, clips"),
        ({"clean": "soap"}, "clean is 'soap': expected one of lower, whitespace, canonicalize"),
        ({"pad_side": "top"}, "pad_side is 'top'"),
        ({"context_length": 3}, "context_length is 3: expected more than 3"),
        ({"context_length": "77"}, "context_length is '77': expected a whole number"),
        ({"pad": -1}, "pad is -1"),
        ({"end": True}, "end is True"),
        ({"zeroed": "x"}, "zeroed is 'x'"),
        ({"literals": {"<s>": None}}, r"literals\[<s>\] is None"),
        ({"literals": ["<s>"]}, "does not follow the schema"),
    ],
)
def test_settings_outside_the_schema_are_refused(make: Make, changes: dict[str, Any], wrong: str) -> None:
    with pytest.raises(BundleSchemaError, match=wrong):
        Tokenizer.from_file(*make(**changes))


def test_settings_that_lack_something_are_refused(make: Make) -> None:
    path, settings = make()
    del settings["pad"]

    with pytest.raises(BundleSchemaError, match="pad"):
        Tokenizer.from_file(path, settings)


def test_settings_of_a_newer_version_are_read(make: Make) -> None:
    assert Tokenizer.from_file(*make(colour="red")).context_length == LENGTH


@pytest.mark.parametrize("missing", ["tokenizers", "ftfy"])
def test_without_its_packages_the_extra_is_named(make: Make, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)

    with pytest.raises(BackendUnavailableError, match=r"pip install 'calipso\[text\]'"):
        Tokenizer.from_file(*make())


def test_no_torch_is_needed(make: Make) -> None:
    path, settings = make()
    code = f"""
import sys
for name in ("torch", "transformers", "open_clip", "regex"): sys.modules[name] = None
from calipso_runtime.tokenizer import Tokenizer
print(Tokenizer.from_file({str(path)!r}, {settings!r})(["a b\u00e9e"]).tolist())
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert result.stdout == "[[2, 0, 4, 3, 5, 5]]\n", result.stderr
