"""Parity: how far the answers of a shipped file are from those of eager PyTorch, and whether that will do."""

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from calipso_export.config import Gates
from calipso_runtime.errors import ParityError

_PERCENTILES = (50, 90, 99)
_MOST_FLIPS_LISTED = 100
# Interval of accuracy: Wilson's score interval at 95 %.
_Z_95 = 1.959963984540054


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answers:
    """What one side says about N pictures.

    Attributes:
        outputs: by name: "logits" float32 [N,K]; "embedding" [N,D] and "tokens" [N,P,D], L2-normalised;
            "probabilities" [N,K]. A side may have more of them than the other.
    """

    outputs: dict[str, npt.NDArray[np.float32]]

    @property
    def logits(self) -> npt.NDArray[np.float32]:
        """float32 [N,K]."""
        return self.outputs["logits"]

    def of(self, indices: list[int] | npt.NDArray[np.bool_]) -> "Answers":
        """Those of some of the pictures."""
        return Answers(outputs={name: values[indices] for name, values in self.outputs.items()})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parity:
    """What was compared, how far off it was, and which gates failed.

    Attributes:
        document: for `parity.json`.
        failures: one sentence per failed gate.
    """

    document: dict[str, Any]
    failures: tuple[str, ...]

    @property
    def status(self) -> str:
        """For the manifest: "passed" or "failed"."""
        return "failed" if self.failures else "passed"


class FailedParityError(ParityError):
    """A gate failed; what was measured is in `parity`."""

    def __init__(self, message: str, parity: Parity) -> None:
        super().__init__(message)
        self.parity = parity


def compare(
    names: list[str],
    eager: Answers,
    shipped: dict[str, tuple[list[int], Answers]],
    *,
    truth: list[int | None],
    gates: Gates,
    about: dict[str, Any],
    checks: dict[str, dict[str, Any]],
) -> Parity:
    """Hold the shipped file's answers against eager PyTorch's.

    Args:
        names: of the N pictures.
        eager: the reference answers on all of them.
        shipped: by file and batch size, in words: which pictures were asked, and what was answered. The last
            one's answers are also counted against the truth.
        truth: class index of each picture, None where it is not known.
        gates: what has to be reached.
        about: added to the document: what was compared with what.
        checks: of the text features and keys that both sides share: the lowest cosine of each.
    """
    by_batch = {}
    failures = [
        f"{what} made anew have a cosine of {check['min_cosine']:.7f} with those in use, needed is "
        f"{gates.min_embedding_cosine}"
        for what, check in checks.items()
        if not check["min_cosine"] >= gates.min_embedding_cosine
    ]
    for batch, (indices, answers) in shipped.items():
        own = eager.of(indices)
        measured = _measure([names[index] for index in indices], own, answers, gates)
        by_batch[batch] = measured
        failures += [f"batch {batch}: {failure}" for failure in _failures(measured, gates)]
    document = {
        **about,
        "gates": dataclasses.asdict(gates),
        "status": "failed" if failures else "passed",
        "failures": failures,
        "made_anew": checks,
        "by_batch": by_batch,
        "worst": _worst(list(by_batch.values())),
    }
    last_indices, last_answers = list(shipped.values())[-1]
    accuracy = _accuracy(last_indices, truth, eager.of(last_indices), last_answers)
    if accuracy is not None:
        document["accuracy"] = accuracy
    return Parity(document=document, failures=tuple(failures))


def _measure(names: list[str], eager: Answers, shipped: Answers, gates: Gates) -> dict[str, Any]:
    scale = spread(eager.logits)
    errors = np.abs(shipped.logits.astype(np.float64) - eager.logits).max(axis=1) / scale
    flips = _flips(names, eager.logits, shipped.logits, gates.max_relative_logit_error * scale)
    ties = sum(flip["tie"] for flip in flips)
    measured: dict[str, Any] = {
        "pictures": len(names),
        "finite": all(bool(np.isfinite(values).all()) for values in shipped.outputs.values()),
        "relative_logit_error": _summary(errors, names),
        "top1_agreement": 1.0 - (len(flips) - ties) / len(names),
        "flips": flips[:_MOST_FLIPS_LISTED],
        "ties_that_flipped": ties,
    }
    for name in sorted(set(shipped.outputs) - {"logits"}):
        first, second = eager.outputs[name], shipped.outputs[name]
        if name == "embedding":
            measured["embedding_cosine"] = _cosine(first, second, names)
        else:
            # Probabilities, and components of unit vectors: values of at most 1, so this is relative too.
            measured[f"{name}_error"] = float(np.abs(first.astype(np.float64) - second).max())
    return measured


def spread(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """What an error is relative to, float64 [N]: a picture's largest logit, after their mean is taken off.

    What is common to all classes decides nothing; CALIP's first term is almost only that.
    """
    wide = logits.astype(np.float64)
    largest: npt.NDArray[np.float64] = np.abs(wide - wide.mean(axis=1, keepdims=True)).max(axis=1)
    return np.maximum(largest, 1e-12)


def _cosine(eager: npt.NDArray[np.float32], shipped: npt.NDArray[np.float32], names: list[str]) -> dict[str, Any]:
    first, second = eager.astype(np.float64), shipped.astype(np.float64)
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    cosine = (first * second).sum(axis=1) / lengths
    worst = int(np.argmin(np.where(np.isnan(cosine), -np.inf, cosine)))
    return {"min": float(cosine[worst]), "mean": float(cosine.mean()), "worst_picture": names[worst]}


def _summary(errors: npt.NDArray[np.float64], names: list[str]) -> dict[str, Any]:
    worst = int(np.argmax(np.where(np.isnan(errors), np.inf, errors)))
    # An infinite answer has an infinite error, of which numpy warns; the gate says it.
    with np.errstate(invalid="ignore"):
        percentiles = np.percentile(errors, _PERCENTILES)
    return {
        "max": float(errors[worst]),
        "mean": float(errors.mean()),
        **{f"p{rank}": float(value) for rank, value in zip(_PERCENTILES, percentiles, strict=True)},
        "worst_picture": names[worst],
    }


def _flips(
    names: list[str],
    eager: npt.NDArray[np.float32],
    shipped: npt.NDArray[np.float32],
    tolerance: npt.NDArray[np.float64],
) -> list[dict[str, Any]]:
    """Pictures whose top class differs, ties last.

    It is a tie if eager's own margin is one that two allowed errors can bridge.
    """
    flips = []
    for index in np.flatnonzero(eager.argmax(axis=1) != shipped.argmax(axis=1)):
        first, other = int(eager[index].argmax()), int(shipped[index].argmax())
        margin = float(eager[index, first] - eager[index, other])
        flips.append(
            {
                "picture": names[index],
                "eager": first,
                "shipped": other,
                "margin": margin,
                "tie": margin <= 2 * float(tolerance[index]),
            }
        )
    return sorted(flips, key=lambda flip: bool(flip["tie"]))


def _failures(measured: dict[str, Any], gates: Gates) -> list[str]:
    failures = []
    if not measured["finite"]:
        failures.append("some answers are NaN or infinite")
    error = measured["relative_logit_error"]
    if not error["max"] <= gates.max_relative_logit_error:
        failures.append(
            f"relative logit error {error['max']:.2e} on {error['worst_picture']}, allowed is "
            f"{gates.max_relative_logit_error:.0e}"
        )
    cosine = measured.get("embedding_cosine")
    if cosine is not None and not cosine["min"] >= gates.min_embedding_cosine:
        failures.append(
            f"embedding cosine {cosine['min']:.7f} on {cosine['worst_picture']}, needed is {gates.min_embedding_cosine}"
        )
    failures += [
        f"{name.removesuffix('_error')} off by {measured[name]:.2e}, allowed is {gates.max_relative_logit_error:.0e}"
        for name in ("probabilities_error", "tokens_error")
        if name in measured and not measured[name] <= gates.max_relative_logit_error
    ]
    if not measured["top1_agreement"] >= gates.min_top1_agreement:
        failures.append(
            f"top-1 agreement {measured['top1_agreement']:.2%}, needed is {gates.min_top1_agreement:.2%}; "
            f"first flip: {next(flip for flip in measured['flips'] if not flip['tie'])}"
        )
    return failures


def _worst(measured: list[dict[str, Any]]) -> dict[str, Any]:
    cosines = [each["embedding_cosine"]["min"] for each in measured if "embedding_cosine" in each]
    return {
        "relative_logit_error": max(each["relative_logit_error"]["max"] for each in measured),
        "embedding_cosine": min(cosines) if cosines else None,
        "top1_agreement": min(each["top1_agreement"] for each in measured),
    }


def _accuracy(indices: list[int], truth: list[int | None], eager: Answers, shipped: Answers) -> dict[str, Any] | None:
    labels = [truth[index] for index in indices]
    known = np.array([label is not None for label in labels])
    if not known.any():
        return None
    right = np.array([label for label in labels if label is not None])
    return {
        "pictures": int(known.sum()),
        "eager": top1(eager.logits[known], right),
        "shipped": top1(shipped.logits[known], right),
    }


def top1(logits: npt.NDArray[np.float32], truth: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Share of pictures whose best class is right, with its 95 % Wilson interval."""
    hits, count = int((logits.argmax(axis=1) == truth).sum()), len(truth)
    share = hits / count
    centre = share + _Z_95**2 / (2 * count)
    spread = _Z_95 * math.sqrt(share * (1 - share) / count + _Z_95**2 / (4 * count**2))
    scale = 1 + _Z_95**2 / count
    return {"top1": share, "interval_95": [(centre - spread) / scale, (centre + spread) / scale]}
