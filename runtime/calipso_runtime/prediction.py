"""What a classifier answers."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from calipso_runtime.confidence import Confidence


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """One class of a prediction.

    Attributes:
        label: the class's name.
        index: its place in `Classifier.labels`.
        logit: what the graph answered.
        probability: softmax of the logits over the bundle's temperature, over all classes, in [0, 1].
    """

    label: str
    index: int
    logit: float
    probability: float


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The best classes of one picture, best first; equal logits in the order of the labels.

    Reads like a tuple of scores: `len(prediction)`, `prediction[0]`, `for score in prediction`.

    Attributes:
        scores: the best classes.
        is_unknown: whether the best probability is below the threshold that the bundle was exported with: the picture
            is then probably of none of the classes. Always False where it was exported without (`--unknown-at`).
    """

    scores: tuple[Score, ...]
    is_unknown: bool = False

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, place: int) -> Score:
        return self.scores[place]

    def __iter__(self) -> Iterator[Score]:
        return iter(self.scores)

    @property
    def label(self) -> str:
        """Name of the best class: also where `is_unknown` tells that it is probably none of them."""
        return self.scores[0].label

    @property
    def probability(self) -> float:
        """Probability of the best class, in [0, 1]."""
        return self.scores[0].probability


def softmax(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Softmax over the last axis, in float64 whatever the logits' type."""
    wide = np.asarray(logits, np.float64)
    exponentials = np.exp(wide - wide.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True), np.float64)


def rank(logits: npt.NDArray[np.float32], labels: Sequence[str], top: int, confidence: "Confidence") -> Prediction:
    """The `top` best of one picture's logits [K]."""
    probabilities = confidence.probabilities(logits)
    order = np.argsort(-logits, kind="stable")[:top]
    return Prediction(
        tuple(
            Score(
                label=labels[index],
                index=int(index),
                logit=float(logits[index]),
                probability=float(probabilities[index]),
            )
            for index in order
        ),
        is_unknown=confidence.is_unknown(float(probabilities[order[0]])),
    )


def as_text(name: str, prediction: Prediction, confidence: "Confidence") -> str:
    """A picture's name, below it whether it is unknown, and a line per class: what `calipso classify` prints."""
    unknown = [f"   unknown  (below {confidence.unknown_below:.2%})"] if prediction.is_unknown else []
    lines = [f"  {score.probability:8.2%}  {score.label}" for score in prediction]
    return "\n".join([name, *unknown, *lines])


def as_json(prediction: Prediction, confidence: "Confidence") -> dict[str, object]:
    """A prediction in plain JSON types: `predictions`, and `unknown` where the bundle can tell that."""
    unknown = {} if confidence.unknown_below is None else {"unknown": prediction.is_unknown}
    predictions = [
        {"label": score.label, "probability": score.probability, "logit": score.logit} for score in prediction
    ]
    return {**unknown, "predictions": predictions}
