"""Verify: the saved files, through the runtime, against eager PyTorch on real pictures and edge cases."""

import contextlib
import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
import torch

from calipso_export.config import ExportConfig
from calipso_export.fewshot.features import PhotoFeatures
from calipso_export.front_ends import Content, FrontEnd
from calipso_export.head_checks import check_keys, check_text
from calipso_export.models import LoadedModel
from calipso_export.photos import Photos
from calipso_export.precision import gates_for
from calipso_export.precision.emulate import emulate, needs_emulation
from calipso_export.probes import Probes, with_texts
from calipso_export.progress import Progress, batches, track
from calipso_export.reference import EagerClassifier, HeadTensors
from calipso_export.step import Made
from calipso_export.steps.gather import Picture, Pictures, evenly
from calipso_export.steps.lower import Lowering
from calipso_export.steps.write import Graph, save
from calipso_export.templates import Prompts
from calipso_runtime import Classifier, load
from calipso_runtime.bundle import HEAD_FILE, TOKENIZER_FILE
from calipso_runtime.graph_file import METADATA_MANIFEST, TEXT_FILE
from calipso_runtime.parity import Answers, Gates, Parity, compare
from calipso_runtime.reference import BATCH_SIZES

# Pictures asked at every batch size; beyond, only the largest batch is asked. Also those that a bundle carries.
_MOST_AT_EVERY_BATCH = 32
# Where an export is verified: the engine that comes with the exporter. `calipso verify --backend` asks others.
_BACKEND = "ort"
_EMULATED = ", model.onnx as an emulation: every 16-bit or fp8 tensor rounded, products summed in fp32"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EagerAnswers:
    """What the reference says, asked once.

    Attributes:
        everything: the pictures asked, edge cases last.
        answers: on all of them.
        about: for the report: the reference, and where the pictures come from.
        shown: what both sides are given for a picture; see `FrontEnd`.
    """

    everything: tuple[Picture, ...]
    answers: Answers
    about: dict[str, Any]
    shown: Callable[[Content], Content] = lambda content: content

    @property
    def given(self) -> int:
        """How many of them are no edge cases."""
        return int(self.about["pictures"]["count"])

    def sample(self) -> list[int]:
        """Which are asked at every batch size: of many pictures an even sample, and all edge cases."""
        return evenly(self.given, _MOST_AT_EVERY_BATCH) + list(range(self.given, len(self.everything)))


class Verify:
    """Compare, and fail the export if a gate fails and `force` is not set."""

    requires: ClassVar[tuple[type, ...]] = (
        ExportConfig,
        LoadedModel,
        Prompts,
        Photos,
        PhotoFeatures,
        HeadTensors,
        Pictures,
        Lowering,
        Graph,
    )
    ensures: ClassVar[tuple[type, ...]] = (EagerAnswers, Parity)

    def run(self, made: Made, progress: Progress) -> None:
        """See `Step.run`."""
        config, model, heads, photos = made[ExportConfig], made[LoadedModel], made[HeadTensors], made[Photos]
        if EagerAnswers not in made:
            # The same for every precision that is tried.
            made.add(_checked(made, progress))
            eager = EagerClassifier(model, heads, with_tokens="tokens" in config.outputs)
            made.add(ask_eager(eager, made[Pictures], progress))
        graph, gates = made[Graph], gates_for(config, made[Lowering].precision)
        probes = made[Probes] if config.takes_labels else None
        is_emulated = needs_emulation(made[Lowering].graphs.portable)
        with (
            computable(graph.path, emulated=is_emulated) as portable,
            load(graph.ort_path, backend=_BACKEND, keep_optimised=False) as ort,
        ):
            files = {graph.path.name: portable, graph.ort_path.name: ort}
            checks = made[Checked].results
            parity = verify(files, made[EagerAnswers], checks, gates=gates, probes=probes, progress=progress)
        if is_emulated:
            parity.document["shipped"] += _EMULATED
        parity.document["skipped_photos"] = list(photos.skipped)
        made.add(parity)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checked:
    """How what both sides share, text features and keys, compares with the same made anew."""

    results: dict[str, dict[str, Any]]


def ask_eager(eager: EagerClassifier, pictures: Pictures, progress: Progress) -> EagerAnswers:
    """Ask the reference, which prepares the pictures with open_clip's own transform; edge cases are added."""
    edges = edge_cases(eager.model.front_end)
    everything = (*pictures.pictures, *edges)
    return EagerAnswers(
        everything=everything,
        answers=_ask_eager(eager, everything, progress),
        about={
            "eager": f"open_clip {eager.model.name} in PyTorch {torch.__version__}, heads by the published formulas",
            "pictures": {
                "source": pictures.source,
                "count": len(pictures.pictures),
                "edge_cases": len(edges),
            },
        },
        shown=eager.model.front_end.shown,
    )


def _checked(made: Made, progress: Progress) -> Checked:
    config, model, heads = made[ExportConfig], made[LoadedModel], made[HeadTensors]
    progress("checking text and keys", 0, 1)
    prompts = made[Prompts]
    checks = {}
    # Fixed texts are encoded by open_clip alone, and the files by themselves.
    if prompts.text_weights is None and not config.takes_labels:
        checks["text"] = check_text(model, config.classes, prompts, heads.text)
    if heads.few_shot is not None and config.shots is not None:
        keys = made[PhotoFeatures].keys
        checks["keys"] = check_keys(model, made[Photos].photos, keys, epochs=config.epochs, seed=config.seed)
    progress("checking text and keys", 1, 1)
    return Checked(results=checks)


@contextlib.contextmanager
def computable(path: Path, *, emulated: bool) -> Iterator[Classifier]:
    """Load a saved graph by the runtime; as its emulation where a CPU would not compute what it says."""
    if not emulated:
        with load(path, backend=_BACKEND, keep_optimised=False) as classifier:
            yield classifier
        return
    model = ir.load(path)
    manifest = model.metadata_props[METADATA_MANIFEST]
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / path.name
        save(emulate(model), written, manifest=manifest)
        # Hundreds of megabytes, while the engine loads as many.
        del model
        if (head := path.with_name(HEAD_FILE)).is_file():
            shutil.copyfile(head, written.with_name(HEAD_FILE))
        if (tokenizer := path.with_name(TOKENIZER_FILE)).is_file():
            shutil.copyfile(tokenizer, written.with_name(TOKENIZER_FILE))
        if (text := path.with_name(TEXT_FILE)).is_file():
            save(emulate(ir.load(text)), written.with_name(TEXT_FILE), manifest=manifest)
        with load(written, backend=_BACKEND, keep_optimised=False) as classifier:
            yield classifier


def verify(
    files: Mapping[str, Classifier],
    eager: EagerAnswers,
    checks: dict[str, dict[str, Any]],
    *,
    gates: Gates,
    progress: Progress,
    probes: Probes | None = None,
) -> Parity:
    """Compare loaded graphs with their eager reference.

    Args:
        files: the saved graphs by name, loaded by the runtime; it prepares the pictures itself.
        eager: what the reference says.
        checks: of what both sides share, out of `head_checks`.
        gates: what has to be reached.
        progress: told after each batch.
        probes: texts that the logits are over, where the files take any labels.
    """
    everything = eager.everything
    prompts = None if probes is None else probes.texts
    shipped = {}
    for name, classifier in files.items():
        for batch in BATCH_SIZES:
            indices = list(range(len(everything))) if batch == max(BATCH_SIZES) else eager.sample()
            chosen = [everything[index] for index in indices]
            label = str(batch) if len(files) == 1 else f"{name}, {batch}"
            contents = _Shown([picture.content for picture in chosen], eager.shown)
            shipped[label] = (indices, _ask_shipped(classifier, contents, name, batch, progress, prompts=prompts))
    engine = next(iter(files.values()))
    about = {
        "shipped": f"{' and '.join(files)} through calipso_runtime, {engine.backend} on {engine.provider}",
        **eager.about,
    }
    parity = compare(
        [picture.name for picture in everything],
        eager.answers,
        shipped,
        checks=checks,
        truth=[picture.label for picture in everything],
        gates=gates,
        about=about,
        edge_cases=len(everything) - eager.given,
    )
    if probes is None:
        return parity
    features = {name: classifier.embed_text(probes.texts) for name, classifier in files.items()}
    return with_texts(parity, probes, features, gates)


def edge_cases(front_end: FrontEnd) -> list[Picture]:
    """Pictures, or clouds, where preparation and normalisation go wrong first."""
    return [Picture(name=f"<{name}>", content=content) for name, content in front_end.edge_cases().items()]


@dataclasses.dataclass(frozen=True)
class _Shown:
    """Pictures, and what is given for one: made when it is asked, for many would not fit into memory."""

    contents: Sequence[Content]
    shown: Callable[[Content], Content]


def _ask_shipped(
    classifier: Classifier,
    contents: "_Shown",
    name: str,
    batch: int,
    progress: Progress,
    *,
    prompts: Sequence[str] | None,
) -> Answers:
    outputs = classifier.outputs
    parts = [
        classifier.run([contents.shown(content) for content in some], outputs, prompts=prompts, batch=batch)
        for some in track(list(batches(contents.contents, batch)), f"asking {name}, batch {batch}", progress)
    ]
    return Answers(outputs={name: np.concatenate([part[name] for part in parts]) for name in outputs})


def _ask_eager(eager: EagerClassifier, pictures: Sequence[Picture], progress: Progress) -> Answers:
    parts = [
        eager(torch.stack([eager.model.front_end.eager_input(picture.content) for picture in some]))
        for some in track(list(batches(pictures, max(BATCH_SIZES))), "asking eager PyTorch", progress)
    ]
    return Answers(outputs={name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]})
