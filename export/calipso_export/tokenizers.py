"""open_clip's tokenizer -> `tokenizer.json` for the `tokenizers` package, and the manifest's table `tokenizer`."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import regex

from calipso_export.clip import open_clip
from calipso_runtime.errors import ModelError
from calipso_runtime.tokenizer import CLIP, CLIPS, HF, TokenizerSettings

_CLEANINGS = ("lower", "whitespace", "canonicalize")
_END_OF_WORD = "</w>"
# The rest of SimpleTokenizer's expression, behind its special tokens. Checked, since it is restated below.
_EXPRESSION = r"|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
# A half of a surrogate pair is no character: cleaning has replaced it.
_CHARACTERS = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))


def write_tokenizer(tokenizer: Any, path: Path) -> TokenizerSettings:
    """Write an open_clip tokenizer for the runtime.

    Args:
        tokenizer: what `open_clip.get_tokenizer` gave.
        path: the file to write, `tokenizer.json`.

    Returns:
        The manifest's table `tokenizer`.

    Raises:
        ModelError: there is no equal in the format of `tokenizers`.
    """
    if isinstance(tokenizer, open_clip.SimpleTokenizer):
        content, settings = _clip_tokenizer(tokenizer)
    else:
        content, settings = _hf_tokenizer(tokenizer)
    encoded = content.encode()
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(encoded)
    partial.replace(path)
    return TokenizerSettings(**settings, sha256=hashlib.sha256(encoded).hexdigest())


def _clip_tokenizer(tokenizer: Any) -> tuple[str, dict[str, Any]]:
    literals = [tokenizer.decoder[number] for number in tokenizer.all_special_ids]
    plain = all(regex.escape(word) == word.replace("-", r"\-") for word in literals)
    if not plain or tokenizer.pat.pattern != "|".join(literals) + _EXPRESSION:
        message = f"the tokenizer splits words by {tokenizer.pat.pattern!r}: only open_clip's own can be exported"
        raise ModelError(message)
    if tokenizer.reduction_fn is not None:
        message = (
            "the tokenizer drops tokens at random (reduction_mask), so no two answers would be the same: take it out "
            "of the model's tokenizer_kwargs"
        )
        raise ModelError(message)
    document: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": _words(literals)}, "behavior": "Removed", "invert": True},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": _END_OF_WORD,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": tokenizer.encoder,
            "merges": [list(pair) for pair in tokenizer.bpe_ranks],
        },
    }
    settings = {
        "kind": CLIP,
        "clean": _cleaning(tokenizer),
        "context_length": int(tokenizer.context_length),
        "vocab_size": len(tokenizer.encoder),
        "pad": 0,
        "start": tokenizer.sot_token_id,
        "end": tokenizer.eot_token_id,
        "literals": {word: tokenizer.encoder[word] for word in literals},
    }
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")), settings


def _words(literals: list[str]) -> str:
    """SimpleTokenizer's expression with every class written out, as the `regex` package here understands it."""
    letters, digits, others = (_class(each) for each in (r"\p{L}", r"\p{N}", r"^\s\p{L}\p{N}"))
    words = ["".join(map(_any_case, word)) for word in (*literals, *_CONTRACTIONS)]
    return "|".join((*words, f"{letters}+", digits, f"{others}+"))


def _any_case(letter: str) -> str:
    return _class(regex.escape(letter)) if letter.isalpha() else letter


def _class(members: str) -> str:
    """A class of characters as ranges; what ignores case in open_clip's expression is in both cases here."""
    found = regex.findall(f"[{members}]", _CHARACTERS, regex.IGNORECASE)
    return "[" + "".join(_ranges(map(ord, found))) + "]"


def _ranges(ascending: Iterator[int]) -> Iterator[str]:
    first = last = next(ascending)
    for point in ascending:
        if point != last + 1:
            yield _range(first, last)
            first = point
        last = point
    yield _range(first, last)


def _range(first: int, last: int) -> str:
    return f"\\x{{{first:X}}}" if first == last else f"\\x{{{first:X}}}-\\x{{{last:X}}}"


def _hf_tokenizer(tokenizer: Any) -> tuple[str, dict[str, Any]]:
    inner = tokenizer.tokenizer
    backend = getattr(inner, "backend_tokenizer", None)
    if backend is None:
        message = (
            f"the tokenizer {type(inner).__name__} has no form in the format of `tokenizers`: convert it to a fast "
            "one, and give its folder with --tokenizer DIR"
        )
        raise ModelError(message)
    # Some set themselves up when they are called: NLLB's goes back to the language that its folder names.
    inner("")
    clips = getattr(tokenizer, "tokenizer_mode", "") == CLIPS
    settings = {
        "kind": CLIPS if clips else HF,
        "clean": _cleaning(tokenizer),
        "context_length": int(tokenizer.context_length),
        "vocab_size": backend.get_vocab_size(),
        "pad": _special(inner, "pad"),
        "pad_side": inner.padding_side,
        "cut_side": inner.truncation_side,
    }
    if clips:
        settings |= {"start": _special(inner, "bos"), "end": _special(inner, "eos"), "last": _special(inner, "cls")}
        settings |= {"pad_side": "right", "cut_side": "right"}
    elif getattr(tokenizer, "strip_sep_token", False):
        settings["zeroed"] = _special(inner, "sep")
    # Whatever a call has left: the runtime sets both.
    document = json.loads(backend.to_str()) | {"truncation": None, "padding": None}
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")), settings


def _special(inner: Any, name: str) -> int:
    number = getattr(inner, f"{name}_token_id")
    if number is None:
        message = f"the tokenizer {inner.name_or_path} has no {name}_token, which the model needs"
        raise ModelError(message)
    return int(number)


def _cleaning(tokenizer: Any) -> str:
    """By its name in open_clip; SigLipTokenizer has it built in."""
    clean = getattr(tokenizer, "clean_fn", open_clip.tokenizer.get_clean_fn("canonicalize"))
    for name in _CLEANINGS:
        if clean is open_clip.tokenizer.get_clean_fn(name):
            return name
    message = f"the tokenizer cleans texts by {clean!r}: only open_clip's own ({', '.join(_CLEANINGS)}) can be exported"
    raise ModelError(message)
