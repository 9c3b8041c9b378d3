"""Classifies pictures with a loaded bundle, and is taught new classes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import TypeVar, overload

import numpy as np
import numpy.typing as npt

from calipso_runtime.asking import DEFAULT_BATCH, Asker, Float32, Prepared, as_float32, check_positive
from calipso_runtime.backends import Backend
from calipso_runtime.confidence import Confidence
from calipso_runtime.cuda.arrays import DeviceImages
from calipso_runtime.errors import ImageError, InputError, UsageError
from calipso_runtime.head.calibrate import Calibration
from calipso_runtime.head.teacher import Teacher
from calipso_runtime.inputs import Images, Item
from calipso_runtime.live import LiveHead
from calipso_runtime.manifest import EMBEDDING, LOGITS, TEXT_EMBEDDING, Manifest
from calipso_runtime.pictures import Source
from calipso_runtime.prediction import Prediction, rank
from calipso_runtime.texts import Texts

_AnyItem = TypeVar("_AnyItem", bound=Item)

DEFAULT_TOP = 5


class Classifier:
    """A loaded bundle. Every method may be called from several threads at once.

    All methods that take `images` take one of: a path, the bytes of a file, an open binary file, a
    Pillow image, uint8 pixels [H,W,3], or float32 [3,H,W] that is preprocessed already; the answer
    is then for one picture. Or many: a list of these, uint8 [N,H,W,3] or float32 [N,3,H,W]; the
    answer is then a list, or has a leading N. Pictures are preprocessed as open_clip does.

    A bundle of raw pixels (`--pixels`) takes no float32, and uint8 arrays in its own order of channels: see
    `calipso_runtime.pixels`. Pictures of different sizes run in batches of one size each; the answers keep their order.

    A bundle that was exported for point clouds takes those instead: float32 [M,3] or [N,M,3], paths or bytes of
    `.npy` and `.npz` files, or a list. See `calipso_runtime.clouds`.

    Where the engine runs on a GPU, they also take [N,3,H,W] in its memory, preprocessed already, from anything
    with DLPack or `__cuda_array_interface__`; it is read where it lies, so its range is not checked.

    They raise ImageError for a picture that cannot be decoded, InputError for an array of the wrong
    dtype, shape or range, for an empty batch, and for `top` or `batch` below 1, and BackendError
    where the engine fails.

    A bundle exported with `--head-mode inputs` can be taught: `teach`, `forget`, `relabel`, and `save` to keep it.
    A call that classifies meanwhile answers with the classes from before or from after, a call of many batches with
    the same throughout; `classify_stream` takes a change over between two batches.

    A bundle exported with `--head-mode open` or `--embed` takes any labels, or prompts as they are: their features are
    made once, and those that come again are remembered.

    Attributes:
        manifest: what the bundle says of itself.
        confidence: the temperature of its probabilities, and below which one a picture is unknown.
        backend: name of the engine in use, "ort".
        provider: what computes in fact, "CPUExecutionProvider".
        backend_reason: why it is this engine, in words.
        outputs: names of what the graph gives: "logits" always, "embedding" normally.
    """

    def __init__(
        self,
        engine: Backend,
        manifest: Manifest,
        *,
        backend_reason: str,
        teacher: Teacher | None = None,
        texts: Texts | None = None,
    ) -> None:
        self._head = LiveHead(engine, manifest, teacher, texts)
        self.manifest = manifest
        self.confidence = Confidence.from_json(manifest.confidence)
        self.backend = engine.name
        self.provider = engine.provider
        self.backend_reason = backend_reason
        # Features of texts are of no picture: `embed_text` gives them.
        given = [output.name for output in engine.outputs if output.name != TEXT_EMBEDDING]
        self.outputs = tuple(given) if LOGITS in given else (LOGITS, *given)
        self._asker = Asker(engine, manifest)

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names, in the order of the logits; of a bundle that takes any, those meant where a call names none."""
        return self._head.now.labels

    def __repr__(self) -> str:
        model = self.manifest.model.get("name", "a graph")
        return f"<Classifier {model}, {len(self.labels)} classes, {self.backend} on {self.provider}>"

    def __enter__(self) -> "Classifier":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the engine's memory back. Later calls raise BackendError.

        Warns:
            CalipsoWarning: what it was taught was not saved.
        """
        self._head.close()

    def teach(
        self,
        label: str,
        images: Images,
        *,
        text: Float32 | None = None,
        add: bool = False,
        calibrate: bool = True,
        batch: int = DEFAULT_BATCH,
    ) -> Calibration | None:
        """Add a class by a few photos of it, which the bundle's own graph encodes; in use when this returns.

        Without a text feature the class lives in the cache, and its zero-shot logit is made from its photos
        (`head.stand_in`). Nothing is on the disk before `save`.

        Args:
            label: of the class.
            images: see the class; one photo is taken, with a warning.
            text: float32 [D], L2-normalised: the class's text feature, where it is known.
            add: add the photos to a class that is there already.
            calibrate: choose alpha and beta anew, by the exporter's search over all keys.
            batch: how many pictures are decoded and computed together.

        Returns:
            How alpha and beta were chosen; None where they stayed.

        Raises:
            TeachingError: the head is baked into this bundle, or another process teaches it.
            UsageError: there is a class of this name, or the head would be too large.
            InputError: no photo, or no label.
            BackendError: a feature is not finite.

        Warns:
            CalipsoWarning: it is one photo only, or one that another class has already.
        """
        return self._head.change(
            lambda teacher: teacher.taught(
                label, np.atleast_2d(self.embed(images, batch=batch)), text, add=add, recalibrate=calibrate
            )
        )

    def forget(self, label: str, *, calibrate: bool = True) -> Calibration | None:
        """Remove a class, taught or exported. Raises UsageError: there is none of this name, or no other one."""
        return self._head.change(lambda teacher: teacher.forgotten(label, recalibrate=calibrate))

    def relabel(self, old: str, new: str) -> None:
        """Give a class another name. Raises UsageError: there is none of the old name, or one of the new name."""
        self._head.change(lambda teacher: teacher.relabelled(old, new))

    def save(self) -> None:
        """Keep what was taught: when this returns it is on the disk, whatever happens then.

        Raises:
            TeachingError: it cannot be written; the changes stay in use, and `save` may be called again.
        """
        self._head.save()

    # A str is a sequence of str: the first signature that fits counts, here as at run time.
    @overload
    def classify(  # type: ignore[overload-overlap]
        self,
        images: Source,
        *,
        labels: Sequence[str] | None = ...,
        prompts: Sequence[str] | None = ...,
        top: int = ...,
        batch: int = ...,
    ) -> Prediction: ...
    @overload
    def classify(
        self,
        images: Sequence[Item],
        *,
        labels: Sequence[str] | None = ...,
        prompts: Sequence[str] | None = ...,
        top: int = ...,
        batch: int = ...,
    ) -> list[Prediction]: ...
    @overload
    def classify(
        self,
        images: Images | DeviceImages,
        *,
        labels: Sequence[str] | None = ...,
        prompts: Sequence[str] | None = ...,
        top: int = ...,
        batch: int = ...,
    ) -> Prediction | list[Prediction]: ...
    def classify(
        self,
        images: Images | DeviceImages,
        *,
        labels: Sequence[str] | None = None,
        prompts: Sequence[str] | None = None,
        top: int = DEFAULT_TOP,
        batch: int = DEFAULT_BATCH,
    ) -> Prediction | list[Prediction]:
        """The best classes of each picture.

        Args:
            images: see the class.
            labels: the classes, of a bundle that takes any; each counts once. None are the bundle's own.
            prompts: instead of labels: texts that are encoded as they are.
            top: how many classes, at most all of them.
            batch: how many pictures are decoded and computed together.
        """
        check_positive("top", top)
        live = self._head.of(_once(labels), _once(prompts))
        logits, single = self._asker.answers(live.engine, images, LOGITS, batch=batch)
        predictions = [rank(row, live.labels, top, self.confidence) for row in logits]
        return predictions[0] if single else predictions

    def logits(
        self,
        images: Images | DeviceImages,
        *,
        labels: Sequence[str] | None = None,
        prompts: Sequence[str] | None = None,
        batch: int = DEFAULT_BATCH,
    ) -> Float32:
        """The logits: float32 [K] for one picture, [N,K] for many; labels and prompts see `classify`."""
        engine = self._head.of(labels, prompts).engine
        values, single = self._asker.answers(engine, images, LOGITS, batch=batch)
        return values[0] if single else values

    def probabilities(
        self,
        images: Images | DeviceImages,
        *,
        labels: Sequence[str] | None = None,
        prompts: Sequence[str] | None = None,
        batch: int = DEFAULT_BATCH,
    ) -> npt.NDArray[np.float64]:
        """Softmax of the logits over the bundle's temperature: float64 [K] for one picture, [N,K] for many."""
        return self.confidence.probabilities(self.logits(images, labels=labels, prompts=prompts, batch=batch))

    def run(
        self,
        images: Images | DeviceImages,
        outputs: Sequence[str] = (LOGITS,),
        *,
        prompts: Sequence[str] | None = None,
        batch: int = DEFAULT_BATCH,
    ) -> dict[str, Float32]:
        """The graph's outputs by name, as the engine gives them: infinities and NaN are not refused here.

        Args:
            images: see the class.
            outputs: names out of `outputs`.
            prompts: of a bundle that takes any labels: what the logits are over, a text each; where the engine runs a
                graph of both towers, it is that graph that gives them.
            batch: how many pictures are decoded and computed together.

        Returns:
            Each named output; a leading N for many pictures, none for a single one.

        Raises:
            UsageError: the graph has no output of this name.
        """
        unknown = [name for name in outputs if name not in self.outputs]
        if unknown or not outputs:
            message = f"outputs are {tuple(outputs)}: this bundle's graph has {', '.join(self.outputs)}"
            raise UsageError(message)
        check_positive("batch", batch)
        engine = self._head.engine_for(outputs, prompts)
        batches, single = self._asker.batches(engine, images, batch)
        parts = [as_float32(self._asker.ask(engine, each, outputs)) for each in batches]
        joined = {name: np.concatenate([part[name] for part in parts]) for name in outputs}
        return {name: values[0] for name, values in joined.items()} if single else joined

    def embed(self, images: Images | DeviceImages, *, batch: int = DEFAULT_BATCH) -> Float32:
        """The model's features, L2-normalised: float32 [D] for one picture, [N,D] for many.

        Raises:
            UsageError: the bundle was exported without embeddings.
        """
        if EMBEDDING not in self.outputs:
            message = f"this bundle's graph has no output {EMBEDDING!r}: export it again with embeddings"
            raise UsageError(message)
        values, single = self._asker.answers(self._head.now.engine, images, EMBEDDING, batch=batch)
        return values[0] if single else values

    def embed_text(self, texts: Sequence[str]) -> Float32:
        """The model's features of texts as they are, L2-normalised: float32 [N,D].

        Raises:
            UsageError: the bundle has no text tower.
        """
        return self._head.texts.of_texts(texts)

    async def classify_async(
        self,
        images: Images | DeviceImages,
        *,
        labels: Sequence[str] | None = None,
        prompts: Sequence[str] | None = None,
        top: int = DEFAULT_TOP,
        batch: int = DEFAULT_BATCH,
    ) -> Prediction | list[Prediction]:
        """`classify` for asyncio: other tasks go on meanwhile, and other calls run beside it."""
        import asyncio

        return await asyncio.to_thread(self.classify, images, labels=labels, prompts=prompts, top=top, batch=batch)

    def classify_stream(
        self,
        images: Iterable[_AnyItem],
        *,
        labels: Sequence[str] | None = None,
        prompts: Sequence[str] | None = None,
        top: int = DEFAULT_TOP,
        batch: int = DEFAULT_BATCH,
        ahead: int = 0,
    ) -> Iterator[tuple[_AnyItem, Prediction | ImageError]]:
        """Classify an endless supply, holding no more than one batch of it in memory, and `ahead` more.

        Args:
            images: any iterable of single pictures; it is read a batch at a time.
            labels: see `classify`.
            prompts: see `classify`.
            top: how many classes, at most all of them.
            batch: how many pictures are decoded and computed together.
            ahead: so many batches are read, decoded and started on a GPU before the first one's answers are given:
                with 1 the host decodes while the GPU computes. Each answer then comes a batch later.

        Yields:
            Each picture with its prediction, in order; or with the ImageError that tells why it
            could not be decoded, which does not stop the stream. An array that is no picture does:
            it raises InputError.
        """
        check_positive("top", top)
        check_positive("batch", batch)
        if isinstance(ahead, bool) or not isinstance(ahead, int) or ahead < 0:
            message = f"ahead is {ahead!r}: expected a whole number of at least 0"
            raise InputError(message)
        live = self._head.of(_once(labels), _once(prompts))

        def begun(tensors: Sequence[Prepared]) -> Callable[[], Iterable[Prediction]]:
            # What is taught changes from batch to batch; texts are those of the call.
            head = live if self._head.takes_texts else self._head.now
            logits = self._asker.start(head.engine, tensors, LOGITS)
            return lambda: (rank(row, head.labels, top, self.confidence) for row in logits())

        return self._asker.stream(iter(images), begun, batch=batch, ahead=ahead)


def _once(names: Sequence[str] | None) -> Sequence[str] | None:
    """Each name once: two of the same would halve its probability."""
    return list(dict.fromkeys(names)) if isinstance(names, list | tuple) else names
