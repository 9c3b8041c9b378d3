"""What is given to be classified -> batches that an engine takes; and its answers, checked, as float32."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar, cast

import numpy as np
import numpy.typing as npt

from calipso_runtime import inputs
from calipso_runtime.backends import Backend, DeviceBackend
from calipso_runtime.cuda.arrays import DeviceImages, is_on_device
from calipso_runtime.errors import BackendError, CalipsoError, ImageError, InputError
from calipso_runtime.inputs import Images, Item
from calipso_runtime.manifest import IMAGE, PIXELS, POINTS, Manifest
from calipso_runtime.pixels import Ragged

Float32: TypeAlias = npt.NDArray[np.float32]
# An item as the graph takes it.
Prepared: TypeAlias = Float32 | npt.NDArray[np.uint8]
_AnyItem = TypeVar("_AnyItem", bound=Item)
_Answer = TypeVar("_Answer")

# What one and many of an input are called in messages.
_ONE = {IMAGE: "image", POINTS: "points", PIXELS: "image"}
_MANY = {IMAGE: "images", POINTS: "clouds", PIXELS: "images"}
# Pictures that are decoded and computed together. Larger batches gain little on a CPU and take memory.
DEFAULT_BATCH = 32


class Asker:
    """Prepares what a bundle's graph takes, and checks what it gives.

    Args:
        engine: of the graph; another of the same graph may be asked.
        manifest: of the bundle.
    """

    def __init__(self, engine: Backend, manifest: Manifest) -> None:
        self._manifest = manifest
        self._where = f"{engine.name} on {engine.provider}"
        # Graphs may take and give fp16; callers always see float32.
        self._input = manifest.input_name
        self._input_dtype = np.dtype(next(tensor.dtype for tensor in engine.inputs if tensor.name == self._input))

    def answers(
        self, engine: Backend, images: Images | DeviceImages, output: str, *, batch: int
    ) -> tuple[Float32, bool]:
        """One output of all items, float32 [N,...], finite; and whether a single one was given."""
        check_positive("batch", batch)
        batches, single = self.batches(engine, images, batch)
        return np.concatenate([self.finite(self.ask(engine, each, [output]), output) for each in batches]), single

    def ask(self, engine: Backend, batch: Any, outputs: Sequence[str]) -> dict[str, npt.NDArray[np.floating]]:
        """The engine's answers to one of `batches`, in its order."""
        if not isinstance(batch, Ragged):
            return engine.run(batch, outputs)
        return batch.in_order([engine.run(cast("Any", part), outputs) for _, part in batch.parts])

    def batches(self, engine: Backend, images: Images | DeviceImages, batch: int) -> tuple[Iterator[Any], bool]:
        """What `ask` takes, a batch at a time, and whether it is of a single item."""
        if is_on_device(images):
            if not isinstance(engine, DeviceBackend):
                message = (
                    f"images lie on a GPU, and {engine.name} runs on {engine.provider}: copy them to the host first"
                )
                raise InputError(message)
            return iter([images]), False
        items, single = inputs.split_for(cast("Images", images), self._manifest)
        return (self._stacked(tensors) for tensors in self._tensors(items, batch, single=single)), single

    def _try_tensor(self, item: Item, place: int) -> Prepared | ImageError:
        """An item as the graph takes it, or why it could not be decoded."""
        try:
            return inputs.tensor_for(item, self._manifest, name=f"{_ONE[self._input]} {place}")
        except ImageError as error:
            return error

    def start(self, engine: Backend, tensors: Sequence[Prepared], output: str) -> Callable[[], Float32]:
        """Start a batch of at least one where the engine can go on with it alone; what is returned waits for it."""
        image = self._stacked(tensors)
        if not isinstance(engine, DeviceBackend) or isinstance(image, Ragged):
            answers = self.ask(engine, image, [output])
            return lambda: self.finite(answers, output)
        pending = engine.submit(image, [output])
        return lambda: self.finite(pending.result(), output)

    def stream(
        self,
        items: Iterator[_AnyItem],
        start: Callable[[Sequence[Prepared]], Callable[[], Iterable[_Answer]]],
        *,
        batch: int,
        ahead: int = 0,
    ) -> Iterator[tuple[_AnyItem, _Answer | ImageError]]:
        """Each of endless items with its answer, in order; or with why it could not be decoded.

        Args:
            items: read a batch at a time.
            start: starts a batch of at least one; what it returns waits for the answers, one of each.
            batch: how many items are decoded and computed together.
            ahead: so many batches are started before the first one's answers are given.
        """
        place = 0
        under_way: deque[Callable[[], Iterator[tuple[_AnyItem, _Answer | ImageError]]]] = deque()
        while chunk := list(itertools.islice(items, batch)):
            under_way.append(self._started(chunk, place, start))
            if len(under_way) > ahead:
                yield from under_way.popleft()()
            place += len(chunk)
        while under_way:
            yield from under_way.popleft()()

    def finite(self, answers: Mapping[str, npt.NDArray[np.floating]], output: str) -> Float32:
        """An output as float32. Raises BackendError: it holds NaN or infinities."""
        values = answers[output].astype(np.float32, copy=False)
        if not np.isfinite(values).all():
            message = f"{self._where} answered {output} that are not finite: the graph overflows there"
            raise BackendError(message)
        return values

    def _started(
        self,
        chunk: Sequence[_AnyItem],
        place: int,
        start: Callable[[Sequence[Prepared]], Callable[[], Iterable[_Answer]]],
    ) -> Callable[[], Iterator[tuple[_AnyItem, _Answer | ImageError]]]:
        """A batch of `stream`, the first of which stands at that place: decoded, and started."""
        decoded = [self._try_tensor(item, place + row) for row, item in enumerate(chunk)]
        tensors = [value for value in decoded if not isinstance(value, ImageError)]
        pending = start(tensors) if tensors else tuple

        def finished() -> Iterator[tuple[_AnyItem, _Answer | ImageError]]:
            answers = iter(pending())
            for item, value in zip(chunk, decoded, strict=True):
                yield item, value if isinstance(value, ImageError) else next(answers)

        return finished

    def _tensors(self, items: Sequence[Item], batch: int, *, single: bool) -> Iterator[list[Prepared]]:
        """The decoded items, a batch at a time."""
        for start in range(0, len(items), batch):
            yield [
                inputs.tensor_for(
                    item, self._manifest, name=_ONE[self._input] if single else f"{_MANY[self._input]}[{start + place}]"
                )
                for place, item in enumerate(items[start : start + batch])
            ]

    def _stacked(self, tensors: Sequence[Prepared]) -> npt.NDArray[Any] | Ragged:
        if self._input == PIXELS and len({each.shape for each in tensors}) > 1:
            return Ragged.of(cast("Sequence[npt.NDArray[np.uint8]]", tensors))
        return np.stack(tensors).astype(self._input_dtype, copy=False)


def as_float32(answers: Mapping[str, npt.NDArray[np.floating]]) -> dict[str, Float32]:
    """Outputs as callers see them, whatever the graph computes in."""
    return {name: values.astype(np.float32, copy=False) for name, values in answers.items()}


def check_positive(name: str, value: int, kind: type[CalipsoError] = InputError) -> None:
    """Raise that error unless it is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        message = f"{name} is {value!r}: expected a whole number of at least 1"
        raise kind(message)
