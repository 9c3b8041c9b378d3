"""Features of pictures and of texts in the space that both share: for search, and for whatever is built on them."""

from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import TypeVar

from calipso_runtime.asking import DEFAULT_BATCH, Asker, Float32, check_positive
from calipso_runtime.backends import Backend
from calipso_runtime.cuda.arrays import DeviceImages
from calipso_runtime.errors import ImageError
from calipso_runtime.inputs import Images, Item
from calipso_runtime.manifest import EMBEDDING, Manifest
from calipso_runtime.texts import Texts
from calipso_runtime.tokenizer import SILENT

_AnyItem = TypeVar("_AnyItem", bound=Item)


class Embedder:
    """A loaded bundle with a text tower. Every method may be called from several threads at once.

    Features are float32 and L2-normalised: the product of two is their cosine. What `images` may be, and what is raised
    for those that cannot be used, see `Classifier`.

    Attributes:
        manifest: what the bundle says of itself.
        backend: name of the engine of the pictures, "ort".
        provider: what computes in fact, "CPUExecutionProvider".
        backend_reason: why it is this engine, in words.
        width: D, numbers in a feature.
    """

    def __init__(self, engine: Backend, manifest: Manifest, texts: Texts, *, backend_reason: str) -> None:
        self._engine, self._texts = engine, texts
        self._asker = Asker(engine, manifest)
        self.manifest = manifest
        self.backend = engine.name
        self.provider = engine.provider
        self.backend_reason = backend_reason
        self.width = int(manifest.model["embed_dim"])

    def __repr__(self) -> str:
        model = self.manifest.model.get("name", "a graph")
        return f"<Embedder {model}, {self.width} numbers, {self.backend} on {self.provider}>"

    def __enter__(self) -> "Embedder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the engine's memory back. Later calls raise BackendError."""
        self._engine.close()
        self._texts.close()

    def image(self, images: Images | DeviceImages, *, batch: int = DEFAULT_BATCH) -> Float32:
        """Features of pictures: float32 [D] of one, [N,D] of many.

        Args:
            images: see `Classifier`.
            batch: how many pictures are decoded and computed together.
        """
        values, single = self._asker.answers(self._engine, images, EMBEDDING, batch=batch)
        return values.reshape(self.width) if single else values

    def image_stream(
        self, images: Iterable[_AnyItem], *, batch: int = DEFAULT_BATCH
    ) -> Iterator[tuple[_AnyItem, Float32 | ImageError]]:
        """Features of an endless supply of pictures, a batch of them in memory at a time.

        Yields:
            Each picture with its feature [D], in order; or with the ImageError that tells why it could not be decoded.
        """
        check_positive("batch", batch)
        return self._asker.stream(
            iter(images), lambda tensors: self._asker.start(self._engine, tensors, EMBEDDING), batch=batch
        )

    def text(self, texts: str | Sequence[str], *, truncation: str = SILENT) -> Float32:
        """Features of texts as they are: float32 [D] of one, [N,D] of a list. Those that come again are remembered.

        Args:
            texts: in the words that the model is meant to read, such as "a photo of a cat.".
            truncation: of texts with more tokens than the model's context: "silent" cuts them as open_clip does, "warn"
                says so, "error" refuses them.

        Raises:
            InputError: there is none, one is no text, or one is too long and truncation is "error".
            BackendError: the engine failed.

        Warns:
            CalipsoWarning: texts were cut, where truncation is "warn".
        """
        if isinstance(texts, str):
            return self._texts.of_texts([texts], truncation=truncation).reshape(self.width)
        return self._texts.of_texts(texts, truncation=truncation)

    def label(self, labels: str | Sequence[str]) -> Float32:
        """Features of labels, by the prompts that the bundle was exported with: as `text`.

        Raises:
            InputError: there is none, one is no text, or the bundle has prompts of its own classes only.
            BackendError: the engine failed.
        """
        if isinstance(labels, str):
            return self._texts.of_labels([labels]).reshape(self.width)
        return self._texts.of_labels(labels)
