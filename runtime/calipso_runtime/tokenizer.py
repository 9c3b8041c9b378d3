"""Texts -> token ids without torch, equal to `open_clip.get_tokenizer(name)(texts)` id for id.

`tokenizer.json` of a bundle is in the format of the `tokenizers` package, and made by the exporter. What open_clip does
around it is done here: cleaning, cutting to the context and padding, as the manifest's table `tokenizer` says. This
file alone imports `tokenizers` and `ftfy`.

Texts are cleaned, and lower-cased, by this Python's own Unicode tables. Which characters CLIP's tokenizer takes for
letters or digits is written out in `tokenizer.json`: that does not depend on the version of any library here. Half of a
surrogate pair, which a str can hold, becomes U+FFFD by cleaning, as in open_clip.
"""

import dataclasses
import hashlib
import html
import string
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from calipso_runtime.errors import (
    BackendUnavailableError,
    BundleCorruptError,
    BundleNotFoundError,
    BundleSchemaError,
    CalipsoWarning,
    InputError,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Engine

WARN, SILENT, ERROR = TRUNCATIONS = ("warn", "silent", "error")
CLIP, HF, CLIPS = KINDS = ("clip", "hf", "clips")
_SIDES = ("right", "left")
_NUMBERS = ("context_length", "vocab_size", "pad", "start", "end", "last")
# So many texts are under way at once: their encodings take far more memory than their ids.
_BATCH = 1024
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
# Of "clips": the start and the end, and the class token at the end of the context.
_CLIPS_OWN = 3
_SHOWN = 60

Ids: TypeAlias = npt.NDArray[np.int64]
# The ids of one text, and whether it was cut.
_Row: TypeAlias = tuple[list[int], bool]


class Tokens(NamedTuple):
    """Texts as token ids.

    Attributes:
        ids: int64 [N,L], padded to the context length.
        cut: indices of the texts that have more tokens than the context, and lost their end.
    """

    ids: Ids
    cut: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerSettings:
    """The manifest's table `tokenizer`.

    Attributes:
        kind: "clip": open_clip's SimpleTokenizer; "hf": its HFTokenizer; or "clips": that one in its mode of this name.
        clean: how texts are cleaned: "lower", "whitespace" or "canonicalize".
        context_length: L.
        vocab_size: how many tokens the file has.
        sha256: of the file.
        pad: id behind the last token.
        start: id before the text; not of "hf", whose file adds its own.
        end: id behind the text, likewise; where a text is cut, the last id.
        literals: of "clip": what stands in a text literally and is one token, with its id.
        last: of "clips": the id at the end of the context.
        zeroed: of "hf": an id that is replaced by 0.
        pad_side: of "hf": "right" or "left".
        cut_side: of "hf": where tokens are lost, "right" or "left".
    """

    kind: str
    clean: str
    context_length: int
    vocab_size: int
    sha256: str
    pad: int
    start: int = 0
    end: int = 0
    literals: Mapping[str, int] = dataclasses.field(default_factory=dict)
    last: int = 0
    zeroed: int | None = None
    pad_side: str = "right"
    cut_side: str = "right"

    def __post_init__(self) -> None:
        for name, allowed in (
            ("kind", KINDS),
            ("clean", tuple(_CLEANERS)),
            ("pad_side", _SIDES),
            ("cut_side", _SIDES),
        ):
            if getattr(self, name) not in allowed:
                message = f"the tokenizer's {name} is {getattr(self, name)!r}: expected one of {', '.join(allowed)}"
                raise BundleSchemaError(message)
        numbers = {name: getattr(self, name) for name in _NUMBERS}
        numbers["zeroed"] = 0 if self.zeroed is None else self.zeroed
        numbers |= {f"literals[{word}]": number for word, number in self.literals.items()}
        for name, number in numbers.items():
            if isinstance(number, bool) or not isinstance(number, int) or number < 0:
                message = f"the tokenizer's {name} is {number!r}: expected a whole number of at least 0"
                raise BundleSchemaError(message)
        if self.context_length <= _CLIPS_OWN:
            message = f"the tokenizer's context_length is {self.context_length}: expected more than {_CLIPS_OWN}"
            raise BundleSchemaError(message)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "TokenizerSettings":
        """Read the table; what a newer version added to it is ignored.

        Raises:
            BundleSchemaError: it does not follow the schema.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        try:
            return cls(**{name: value for name, value in document.items() if name in known})
        except (TypeError, AttributeError) as error:
            message = f"the manifest's table `tokenizer` does not follow the schema: {error}"
            raise BundleSchemaError(message) from error

    def as_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dataclasses.asdict(self)


class Tokenizer:
    """Texts -> token ids; safe to call from several threads.

    Args:
        engine: the file, read by `tokenizers`.
        settings: what is done around it.
    """

    def __init__(self, engine: "Engine", settings: TokenizerSettings) -> None:
        self.settings = settings
        self._engine = engine
        self._clean = _CLEANERS[settings.clean]
        self._rows = {CLIP: self._clip_rows, HF: self._hf_rows, CLIPS: self._clips_rows}[settings.kind]
        engine.no_padding()
        engine.no_truncation()
        if settings.kind == HF:
            engine.enable_truncation(settings.context_length, direction=settings.cut_side)

    @classmethod
    def from_file(cls, path: str | Path, settings: Mapping[str, Any]) -> "Tokenizer":
        """Read a bundle's tokenizer.

        Args:
            path: `tokenizer.json`.
            settings: the manifest's table `tokenizer`.

        Raises:
            BackendUnavailableError: `tokenizers` or `ftfy` is not installed.
            BundleNotFoundError: there is no such file.
            BundleCorruptError: the file is not the one that the settings are of.
            BundleSchemaError: the settings do not follow the schema.
        """
        own = TokenizerSettings.from_json(settings)
        engine_class = _engine_class()
        path = Path(path)
        try:
            content = path.read_bytes()
        except OSError as error:
            message = f"the tokenizer {path} cannot be read: {error.strerror or error}. Copy it beside the graph"
            raise BundleNotFoundError(message) from error
        if hashlib.sha256(content).hexdigest() != own.sha256:
            message = f"{path} is not this model's tokenizer: its sha256 is another. Copy or export it again"
            raise BundleCorruptError(message)
        try:
            engine = engine_class.from_buffer(content)
        except Exception as error:  # `tokenizers` raises nothing narrower
            message = f"{path} cannot be read by `tokenizers`: {error}. Upgrade it, or export again"
            raise BundleCorruptError(message) from error
        if (found := engine.get_vocab_size()) != own.vocab_size:
            message = (
                f"{path} has {found} tokens, and its settings are of one with {own.vocab_size}: copy or export it again"
            )
            raise BundleCorruptError(message)
        return cls(engine, own)

    @property
    def context_length(self) -> int:
        """How many ids each text becomes."""
        return self.settings.context_length

    def __call__(self, texts: str | Sequence[str]) -> Ids:
        """Token ids int64 [N,L]; a text with more tokens than the context is cut, as open_clip cuts it.

        Raises:
            InputError: there is no text, or one is not a str.
        """
        return self.encode(texts, truncation=SILENT).ids

    def encode(self, texts: str | Sequence[str], *, truncation: str = WARN) -> Tokens:
        """Token ids, and which texts were cut.

        Args:
            texts: one text, or several.
            truncation: what to do about texts with more tokens than the context: "warn" and "silent" cut them, "error"
                refuses them.

        Raises:
            InputError: there is no text, one is not a str, or one is too long and truncation is "error".
        """
        check_truncation(truncation)
        texts = _checked(texts)
        ids = np.full((len(texts), self.context_length), self.settings.pad, np.int64)
        cut = []
        for index, (row, was_cut) in enumerate(self._each(texts)):
            if self.settings.pad_side == "right":
                ids[index, : len(row)] = row
            else:
                ids[index, self.context_length - len(row) :] = row
            if was_cut:
                cut.append(index)
        if self.settings.zeroed is not None:
            ids[ids == self.settings.zeroed] = 0
        self.tell(texts, cut, truncation)
        return Tokens(ids, tuple(cut))

    def tell(self, texts: Sequence[str], cut: Sequence[int], truncation: str) -> None:
        """Say which texts are cut, as `encode` is asked to.

        Args:
            texts: all of them.
            cut: indices of those that are cut.
            truncation: see `encode`.

        Raises:
            InputError: there are some, and truncation is "error".
        """
        if not cut or truncation == SILENT:
            return
        first = texts[cut[0]]
        shown = first if len(first) <= _SHOWN else f"{first[:_SHOWN]}..."
        message = (
            f"{len(cut)} of {len(texts)} texts have more tokens than the {self.context_length} of this model's "
            f"context, the first is number {cut[0]}: {shown!r}."
        )
        if truncation == ERROR:
            raise InputError(message)
        warnings.warn(f"{message} They were cut", CalipsoWarning, stacklevel=3)

    def _each(self, texts: list[str]) -> Iterator[_Row]:
        for start in range(0, len(texts), _BATCH):
            yield from self._rows([self._clean(text) for text in texts[start : start + _BATCH]])

    def _clip_rows(self, texts: list[str]) -> Iterator[_Row]:
        own, length = self.settings, self.context_length
        encodings = self._engine.encode_batch_fast(texts, add_special_tokens=False)
        for text, encoding in zip(texts, encodings, strict=True):
            within = any(word in text for word in own.literals)
            row = [own.start, *(self._with_literals(text) if within else encoding.ids), own.end]
            yield (row if len(row) <= length else [*row[: length - 1], own.end]), len(row) > length

    def _with_literals(self, text: str) -> list[int]:
        """The same for a text that spells a special token: open_clip takes it for one where it stands as a word."""
        splitter, model, ids = self._engine.pre_tokenizer, self._engine.model, []
        for word, _ in [] if splitter is None else splitter.pre_tokenize_str(text):
            known = self.settings.literals.get(word)
            ids += [token.id for token in model.tokenize(word)] if known is None else [known]
        return ids

    def _hf_rows(self, texts: list[str]) -> Iterator[_Row]:
        # Not the fast one, which keeps nothing of what it cuts.
        for encoding in self._engine.encode_batch(texts):
            yield encoding.ids, bool(encoding.overflowing)

    def _clips_rows(self, texts: list[str]) -> Iterator[_Row]:
        own, most = self.settings, self.context_length - _CLIPS_OWN
        for encoding in self._engine.encode_batch_fast(texts, add_special_tokens=False):
            row = [own.start, *encoding.ids[:most], own.end]
            pads = [own.pad] * (self.context_length - 1 - len(row))
            yield [*row, *pads, own.last], len(encoding.ids) > most


def check_truncation(truncation: str) -> None:
    """Raises InputError: there is no such way with texts that are too long."""
    if truncation not in TRUNCATIONS:
        message = f"truncation is {truncation!r}: expected one of {', '.join(TRUNCATIONS)}"
        raise InputError(message)


def _checked(texts: str | Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        return [texts]
    if isinstance(texts, bytes) or not hasattr(texts, "__iter__"):
        message = f"texts are of type {type(texts).__name__}: expected a str, or several"
        raise InputError(message)
    listed = list(texts)
    for index, text in enumerate(listed):
        if not isinstance(text, str):
            message = f"text {index} is of type {type(text).__name__}: expected a str"
            raise InputError(message)
    if not listed:
        message = "there are no texts: expected at least one"
        raise InputError(message)
    return listed


def _engine_class() -> "type[Engine]":
    try:
        import ftfy  # noqa: F401
        from tokenizers import Tokenizer as Engine
    except ImportError as error:
        message = f"texts need `tokenizers` and `ftfy` ({error}): pip install 'calipso[text]'"
        raise BackendUnavailableError(message) from error
    return Engine


def _repaired(text: str) -> str:
    """What all of open_clip's cleaning begins with: wrongly decoded text repaired, entities resolved twice."""
    if text.isascii() and text.isprintable() and "&" not in text:
        # There is nothing to repair.
        return text.strip()
    from ftfy import fix_text

    return html.unescape(html.unescape(fix_text(text))).strip()


def _whitespace(text: str) -> str:
    return " ".join(_repaired(text).split())


def _lower(text: str) -> str:
    return _whitespace(text).lower()


def _canonicalize(text: str) -> str:
    """Without ASCII's punctuation; source: big_vision, evaluators/proj/image_text/prompt_engineering.py."""
    return " ".join(_repaired(text).replace("_", " ").translate(_NO_PUNCTUATION).lower().split())


_CLEANERS: dict[str, Callable[[str], str]] = {
    "lower": _lower,
    "whitespace": _whitespace,
    "canonicalize": _canonicalize,
}
