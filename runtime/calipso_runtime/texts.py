"""Texts -> features, by a bundle's own tokenizer and text tower; those of texts that come again are kept.

A label has the mean of the normalised features of its prompts, normalised again, as at an export (openai/CLIP,
notebooks/Prompt_Engineering_for_ImageNet.ipynb); a text as it is has its own.
"""

import collections
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from calipso_runtime.asking import Float32
from calipso_runtime.backends import Backend, TensorInfo
from calipso_runtime.errors import BackendError, InputError
from calipso_runtime.manifest import EMBEDDING, LOGITS, TEXT_EMBEDDING, Manifest
from calipso_runtime.tokenizer import SILENT, Ids, Tokenizer, check_truncation

# Features that are kept, with what they take besides; beyond, those go that were used longest ago.
DEFAULT_CACHE_BYTES = 256 * 2**20
# What an entry takes beside its feature and its text, about: key, array and place in the table.
_ENTRY_BYTES = 400
# Texts that are looked up together, and prompts that the tower encodes together.
_CHUNK, _BATCH = 256, 32

# The prompts of a label or text.
PromptsOf: TypeAlias = Callable[[str], tuple[str, ...]]
_Key: TypeAlias = tuple[str, str]


class Texts:
    """Encodes texts; safe to call from several threads.

    Args:
        open_engine: opens the text tower, which is asked for token ids alone; at the first text.
        open_tokenizer: opens the tokenizer, likewise.
        manifest: of the bundle.
        cache_bytes: how much memory kept features may take.
        truncation: of labels and texts with more tokens than the context: see `Tokenizer.encode`.
    """

    def __init__(
        self,
        open_engine: Callable[[], Backend],
        open_tokenizer: Callable[[], Tokenizer],
        manifest: Manifest,
        *,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        truncation: str = SILENT,
    ) -> None:
        self._truncation = truncation
        self._open_engine, self._open_tokenizer = open_engine, open_tokenizer
        self._prompts = manifest.prompts
        self._width = int(manifest.model["embed_dim"])
        self._opening = threading.Lock()
        self._engine: Backend | None = None
        self._tokenizer: Tokenizer | None = None
        self._cache = _Cache(cache_bytes)

    def of_texts(self, texts: Sequence[str], *, truncation: str | None = None) -> Float32:
        """Features of texts as they are: float32 [N,D], L2-normalised.

        Args:
            texts: what to encode.
            truncation: of texts with more tokens than the context: see `Tokenizer.encode`; None is that of the class.

        Raises:
            InputError: there is none, one is no text, or one is too long and truncation is "error".
        """
        return self._features("text", _checked(texts, "texts"), lambda text: (text,), truncation)

    def of_labels(self, labels: Sequence[str]) -> Float32:
        """Features of labels, by the bundle's prompts: float32 [N,D], L2-normalised.

        Raises:
            InputError: there is none, one is no text, the bundle has prompts of its own classes only, or a prompt is
                too long and the class's truncation is "error".
        """
        return self._features("label", _checked(labels, "labels"), self.prompts_of)

    def token_ids(self, texts: Sequence[str]) -> Ids:
        """Token ids int64 [N,L] of texts as they are, for a graph that has the text tower.

        Raises:
            InputError: there is none, one is no text, or one is too long and the class's truncation is "error".
        """
        return self.tokenizer.encode(texts, truncation=self._truncation).ids

    def prompts_of(self, label: str) -> tuple[str, ...]:
        """What is encoded for a label."""
        own = self._prompts.get("per_class")
        if own is None:
            return tuple(str(template).replace("{}", label) for template in self._prompts["templates"])
        if label not in own:
            message = (
                f"the bundle has prompts for {', '.join(own)} alone, and none for {label!r}: give the prompts "
                "themselves (prompts=), or export it with templates"
            )
            raise InputError(message)
        return tuple(map(str, own[label]))

    @property
    def tokenizer(self) -> Tokenizer:
        """The bundle's."""
        with self._opening:
            if self._tokenizer is None:
                self._tokenizer = self._open_tokenizer()
            return self._tokenizer

    @property
    def engine(self) -> Backend:
        """That of the text tower."""
        with self._opening:
            if self._engine is None:
                self._engine = self._open_engine()
            return self._engine

    def close(self) -> None:
        """Give the engine's memory back, and forget all features."""
        with self._opening:
            if self._engine is not None:
                self._engine.close()
        self._cache.clear()

    def _features(
        self, kind: str, texts: Sequence[str], prompts_of: PromptsOf, truncation: str | None = None
    ) -> Float32:
        self._tell_cut(texts, prompts_of, self._truncation if truncation is None else truncation)
        found = np.empty((len(texts), self._width), np.float32)
        for start in range(0, len(texts), _CHUNK):
            keys = [(kind, text) for text in texts[start : start + _CHUNK]]
            known = self._cache.find(keys)
            missing = [key for key in dict.fromkeys(keys) if key not in known]
            for key, feature in self._encoded(missing, prompts_of):
                known[key] = feature
                self._cache.add(key, feature)
            for place, key in enumerate(keys, start=start):
                found[place] = known[key]
        return found

    def _tell_cut(self, texts: Sequence[str], prompts_of: PromptsOf, truncation: str) -> None:
        check_truncation(truncation)
        if truncation == SILENT:
            return
        cut: list[int] = []
        # All of them, remembered or not, and never more token ids than those of a chunk.
        for start in range(0, len(texts), _CHUNK):
            prompts = [(place, each) for place, text in enumerate(texts[start : start + _CHUNK], start=start)
                       for each in prompts_of(text)]  # fmt: skip
            ids = self.tokenizer.encode([prompt for _, prompt in prompts], truncation=SILENT)
            cut += dict.fromkeys(prompts[place][0] for place in ids.cut)
        self.tokenizer.tell(texts, cut, truncation)

    def _encoded(self, keys: Sequence[_Key], prompts_of: PromptsOf) -> Iterator[tuple[_Key, Float32]]:
        """The feature of each, the mean over its prompts; prompts of several together are encoded."""
        prompts = [prompts_of(text) for _, text in keys]
        flat = [prompt for own in prompts for prompt in own]
        if not flat:
            return
        # Equal prompts of different labels, and in any number, are no reason to hold more than a chunk's features.
        encoded = self._encode(self.tokenizer(flat))
        start = 0
        for key, own in zip(keys, prompts, strict=True):
            mean = encoded[start : start + len(own)].mean(axis=0)
            yield key, mean / np.linalg.norm(mean)
            start += len(own)

    def _encode(self, ids: Ids) -> Float32:
        engine = self.engine
        parts = [
            engine.run(ids[start : start + _BATCH], [TEXT_EMBEDDING])[TEXT_EMBEDDING]
            for start in range(0, len(ids), _BATCH)
        ]
        features = np.concatenate(parts).astype(np.float32, copy=False)
        if not np.isfinite(features).all():
            message = (
                f"{engine.name} on {engine.provider} answered features of texts that are not finite: the graph "
                "overflows there"
            )
            raise BackendError(message)
        return features


class _Cache:
    """Features by text, at most so many bytes of them: whichever was asked for longest ago goes first."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._entries: collections.OrderedDict[_Key, Float32] = collections.OrderedDict()
        self._bytes = 0

    def find(self, keys: Sequence[_Key]) -> dict[_Key, Float32]:
        with self._lock:
            found = {key: self._entries[key] for key in keys if key in self._entries}
            for key in found:
                self._entries.move_to_end(key)
            return found

    def add(self, key: _Key, feature: Float32) -> None:
        with self._lock:
            if key in self._entries:
                return
            self._entries[key] = feature
            self._bytes += _size(key, feature)
            while self._bytes > self._most_bytes:
                self._bytes -= _size(*self._entries.popitem(last=False))

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()
            self._bytes = 0


def _size(key: _Key, feature: Float32) -> int:
    return feature.nbytes + 4 * len(key[1]) + _ENTRY_BYTES


class TextHead:
    """An engine that gives embeddings of pictures, with logits over given texts: a backend like it.

    Args:
        engine: gives "embedding".
        features: float32 [N,D], L2-normalised, of the texts.
        manifest: tells the checkpoint's scale and bias.
    """

    def __init__(self, engine: Backend, features: Float32, manifest: Manifest) -> None:
        self.name, self.provider, self.graph = engine.name, engine.provider, engine.graph
        self.metadata, self.inputs = engine.metadata, engine.inputs
        others = [output for output in engine.outputs if output.name != LOGITS]
        self.outputs: Sequence[TensorInfo] = (
            TensorInfo(name=LOGITS, shape=(None, len(features)), dtype="float32"),
            *others,
        )
        self._engine, self._features = engine, features
        self._scale = np.float32(manifest.model["logit_scale"])
        self._bias = np.float32(manifest.model["logit_bias"])

    def run(self, image: Any, outputs: Sequence[str]) -> dict[str, npt.NDArray[np.floating]]:
        """See `Backend.run`: the graph is asked for the embedding alone."""
        needed = dict.fromkeys(EMBEDDING if name == LOGITS else name for name in outputs)
        answers = self._engine.run(image, list(needed))
        embedding = answers[EMBEDDING].astype(np.float32, copy=False)
        logits = self._scale * embedding @ self._features.T + self._bias
        return {name: logits if name == LOGITS else answers[name] for name in outputs}

    def close(self) -> None:
        """See `Backend.close`."""
        self._engine.close()


def _checked(texts: Sequence[str], name: str) -> list[str]:
    """The texts as a list. Raises InputError: there is none, or one is no text."""
    if isinstance(texts, str | bytes) or not isinstance(texts, collections.abc.Iterable):
        message = f"{name} is {type(texts).__name__} {str(texts)[:40]!r}: expected a list of texts"
        raise InputError(message)
    listed = list(texts)
    if not listed:
        message = f"{name} is empty: expected at least one text"
        raise InputError(message)
    for place, text in enumerate(listed):
        if not isinstance(text, str):
            message = f"{name}[{place}] is a {type(text).__name__}: expected a text"
            raise InputError(message)
    return listed
