"""What a call is answered with: the bundle's head, that head as it is taught, or the texts that the call names."""

import dataclasses
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import cast

from calipso_runtime.backends import Backend, HeadBackend
from calipso_runtime.errors import CalipsoWarning, InputError, TeachingError, UsageError
from calipso_runtime.head.calibrate import Calibration
from calipso_runtime.head.teacher import Change, Teacher
from calipso_runtime.manifest import LOGITS, TOKEN_IDS, Manifest
from calipso_runtime.texts import TextHead, Texts

_NO_TOWER = (
    "this bundle has no text tower, its classes are those of its export: export it again with --head-mode open or "
    "--embed for labels and texts of any kind"
)


@dataclasses.dataclass(frozen=True)
class Live:
    """Engine and labels that belong together: replaced as one, so that an answer is of one head."""

    engine: Backend
    labels: tuple[str, ...]


class LiveHead:
    """The head of a loaded bundle. Its methods may be called from several threads at once.

    Args:
        engine: of the bundle's graph.
        manifest: of the bundle.
        teacher: of a bundle that can be taught.
        texts: of a bundle that takes any labels.

    Attributes:
        now: what a call that names no texts is answered with.
    """

    def __init__(self, engine: Backend, manifest: Manifest, teacher: Teacher | None, texts: Texts | None) -> None:
        self.now = Live(engine, manifest.labels if teacher is None else teacher.head.labels)
        self._manifest = manifest
        self._teacher = teacher
        self._texts = texts
        self._teaching = threading.Lock()

    @property
    def texts(self) -> Texts:
        """The bundle's text tower. Raises UsageError: it has none."""
        if self._texts is None:
            raise UsageError(_NO_TOWER)
        return self._texts

    @property
    def takes_texts(self) -> bool:
        """Whether there is a text tower."""
        return self._texts is not None

    def of(self, labels: Sequence[str] | None, prompts: Sequence[str] | None) -> Live:
        """What a call is answered with: the bundle's classes, or the texts of the call."""
        if self._texts is None:
            self._refuse(labels, prompts)
            return self.now
        if labels is not None and prompts is not None:
            message = "labels and prompts are given: give one of them, prompts are encoded as they are"
            raise InputError(message)
        names = prompts if prompts is not None else labels
        if names is None:
            names = self.now.labels
            if not names:
                message = "this bundle has no labels of its own: give some, labels=['cat', 'dog']"
                raise InputError(message)
        features = self._texts.of_labels(names) if prompts is None else self._texts.of_texts(names)
        return Live(TextHead(self.now.engine, features, self._manifest), tuple(names))

    def engine_for(self, outputs: Sequence[str], prompts: Sequence[str] | None) -> Backend:
        """What gives these outputs: the graph itself, also over prompts where it can."""
        engine = self.now.engine
        if self._texts is None or LOGITS not in outputs:
            self._refuse(prompts)
            return engine
        if prompts is None:
            message = "logits of this bundle are over texts that a call names: give prompts=['a photo of a cat.']"
            raise InputError(message)
        if all(output.name != LOGITS for output in engine.outputs):
            return TextHead(engine, self._texts.of_texts(prompts), self._manifest)
        return cast("HeadBackend", engine).bind({TOKEN_IDS: self._texts.token_ids(prompts)})

    def change(self, make: Callable[[Teacher], Change]) -> Calibration | None:
        """Make a change, one at a time, and use it. Raises TeachingError: the bundle cannot be taught.

        Args:
            make: what is asked of the teacher.

        Returns:
            How alpha and beta were chosen; None where they stayed.
        """
        with self._teaching:
            teacher = self._begun()
            change = make(teacher)
            engine = cast("HeadBackend", self.now.engine).bind(change.head.arrays())
            self.now = Live(engine, change.head.labels)
            teacher.take(change)
            return change.calibration

    def save(self) -> None:
        """See `Teacher.save`; nothing where nothing can be taught."""
        with self._teaching:
            if self._teacher is not None:
                self._teacher.save()

    def close(self) -> None:
        """See `Classifier.close`, which is what a warning points at the caller of."""
        with self._teaching:
            self.now.engine.close()
            if self._texts is not None:
                self._texts.close()
            if self._teacher is None:
                return
            self._teacher.close()
            if self._teacher.has_unsaved:
                message = "the classifier was closed before what it was taught was saved: call save() first"
                warnings.warn(message, CalipsoWarning, stacklevel=3)

    def _refuse(self, *named: Sequence[str] | None) -> None:
        """Raise UsageError where texts are named and nothing reads them."""
        if self._texts is None and any(each is not None for each in named):
            raise UsageError(_NO_TOWER)

    def _begun(self) -> Teacher:
        if self._teacher is None:
            why = "takes any labels and keeps none" if self.takes_texts else "has its head baked into its graph"
            message = (
                f"this bundle {why}, so it cannot be taught: export it again with --head-mode inputs "
                "(head_mode='inputs')"
            )
            raise TeachingError(message)
        self._teacher.begin()
        return self._teacher
