"""The contenders of one number of threads: made ready, verified, timed, and closed again."""

import time
from collections.abc import Sequence
from typing import Any

from calipso_bench.cells import threads_in_words
from calipso_bench.contenders import Contender, ContenderUnavailable, connect, first_line, is_bundle
from calipso_bench.pictures import Batch, Pictures, all_batches
from calipso_bench.record import Record
from calipso_bench.sampling import Entrant
from calipso_bench.subject import Subject
from calipso_bench.verification import STAGES, Output, Reference, call, disagreements, recheck, verify
from calipso_export.progress import Progress
from calipso_runtime.errors import ParityError


class Lineup:
    """Contenders that are ready, for as long as the context is open.

    Args:
        names: who is asked for.
        subject: what they run.
        record: told who is available, and what making them ready took.
        threads: of every engine.
        progress: told about long work.
    """

    def __init__(
        self, names: Sequence[str], subject: Subject, record: Record, *, threads: int, progress: Progress
    ) -> None:
        self.contenders: dict[str, Contender] = {}
        self._record = record
        self._threads = threads
        self._progress = progress
        what = f"loading contenders, {threads_in_words(threads)}"
        for place, name in enumerate(names):
            progress(what, place, len(names))
            # What rivals share, the rebuilt model and its plain export, is made once and is nobody's own.
            started = time.perf_counter() - subject.made_s
            try:
                contender = connect(name, subject, threads=threads)
            except ContenderUnavailable as error:
                self._leave_out(name, str(error))
                continue
            self.contenders[name] = contender
            record.contender(name).update(about=contender.about, device=contender.device)
            self._add_setup(name, time.perf_counter() - subject.made_s - started)
        progress(what, len(names), len(names))

    def __enter__(self) -> "Lineup":
        return self

    def __exit__(self, *_: object) -> None:
        for contender in self.contenders.values():
            contender.close()
        self.contenders.clear()

    def verify(self, pictures: Pictures, reference: Reference, size: int, *, most: int | None = None) -> None:
        """Hold every contender to the reference, on `most` pictures or on all; rivals that fail are not timed.

        Raises:
            ParityError: the bundle itself fails.
        """
        what = f"verifying, {threads_in_words(self._threads)}"
        for place, name in enumerate(tuple(self.contenders)):
            self._progress(what, place, len(self.contenders))
            contender = self.contenders[name]
            try:
                for stage in STAGES:
                    self._first_call(contender, stage, all_batches(pictures, size)[0])
                found = verify(contender, pictures, reference, size, most=most)
            except ContenderUnavailable as error:
                self._leave_out(name, str(error))
                continue
            self._judge(name, found)
        self._progress(what, len(self.contenders), len(self.contenders))
        self._record.save()

    def entrants(self, stage: str, batches: Sequence[Batch], reference: Reference) -> list[Entrant]:
        """Everyone who takes part in a cell, each with verified answers to its batches.

        Raises:
            ParityError: the bundle itself answers a batch otherwise than the reference.
        """
        found = []
        for name, contender in tuple(self.contenders.items()):
            try:
                self._first_call(contender, stage, batches[0])
            except ContenderUnavailable as error:
                self._leave_out(name, str(error))
                continue
            expected = [call(contender, stage, batch) for batch in batches]
            wrong = [each for batch, output in zip(batches, expected, strict=True)
                     for each in disagreements(output, stage, batch, reference)]  # fmt: skip
            if contender.exact and wrong:
                line = self._record.document["verification"][name]
                self._judge(name, {**line, "passed": False, "failures": [*line["failures"], *wrong]})
                continue
            found.append(_entrant(contender, stage, batches, expected, reference))
        return found

    def _first_call(self, contender: Contender, stage: str, batch: Batch) -> None:
        """Engines that compile, tune or allocate for a batch size do it here, in their setup time.

        Raises:
            ContenderUnavailable: a rival's engine fails at it.
        """
        started = time.perf_counter()
        try:
            call(contender, stage, batch)
        except RuntimeError as error:
            # What engines raise; the bundle's backends turn it into errors of their own.
            message = f"{stage}, batch {len(batch.places)} fails: {first_line(error)}"
            raise ContenderUnavailable(message) from error
        self._add_setup(contender.name, time.perf_counter() - started)

    def _judge(self, name: str, found: dict[str, Any]) -> None:
        self._record.document["verification"][name] = _worse(self._record.document["verification"].get(name), found)
        if found["passed"]:
            return
        if is_bundle(name):
            self._record.save()
            message = (
                f"{name} does not answer like {found['against']}: {'; '.join(found['failures'])}. "
                "Nothing is timed; `calipso verify` tells more"
            )
            raise ParityError(message)
        self.contenders.pop(name).close()

    def _leave_out(self, name: str, reason: str) -> None:
        self._record.contender(name).update(available=False, reason=reason)
        if name in self.contenders:
            self.contenders.pop(name).close()

    def _add_setup(self, name: str, seconds: float) -> None:
        setup_s = self._record.contender(name)["setup_s"]
        setup_s[str(self._threads)] = setup_s.get(str(self._threads), 0.0) + seconds


def _entrant(
    contender: Contender, stage: str, batches: Sequence[Batch], expected: Sequence[Output], reference: Reference
) -> Entrant:
    logits = [reference.logits[list(batch.places)] for batch in batches]

    def ask(number: int) -> Output:
        return call(contender, stage, batches[number % len(batches)])

    def check(number: int, output: Output) -> list[str]:
        place = number % len(batches)
        return recheck(output, expected[place], logits[place], exact=contender.exact)

    return Entrant(
        name=contender.name,
        call=ask,
        check=check,
        device_ms=contender.device_ms,
        images=len(batches[0].places),
    )


def _worse(old: dict[str, Any] | None, new: dict[str, Any]) -> dict[str, Any]:
    """The worst of two verifications of the same contender, with other threads."""
    if old is None:
        return new
    return {
        **new,
        "pictures": max(old["pictures"], new["pictures"]),
        "relative_logit_error": max(old["relative_logit_error"], new["relative_logit_error"]),
        "top1_agreement": min(old["top1_agreement"], new["top1_agreement"]),
        "embedding_cosine": min(old["embedding_cosine"], new["embedding_cosine"]),
        "passed": old["passed"] and new["passed"],
        "failures": list(dict.fromkeys([*old["failures"], *new["failures"]])),
    }
