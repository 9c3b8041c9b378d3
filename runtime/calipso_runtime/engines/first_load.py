"""Holds an engine that no GPU had run to its bundle's gates when it is first loaded, and records the outcome.

    engines/rtx-sm86-sm89-1.7.1.116-1f0c9a2b.5d41402a.verified

The file lies beside the plan. Its name has the plan's hash, and a hash of GPU, driver and version of the library: it is
trusted only where all of them are the same.
"""

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calipso_runtime import devices
from calipso_runtime.backends import Backend
from calipso_runtime.bundle import Bundle
from calipso_runtime.engines.plans import VERIFIED_SUFFIX, Machine, Plan, build_command, write_file
from calipso_runtime.errors import BackendUnavailableError, CalipsoWarning
from calipso_runtime.manifest import canonical
from calipso_runtime.reference import batch_sizes, read_reference, verify_engine

_SHOWN = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class FirstLoad:
    """The first load of a plan on a machine.

    Attributes:
        bundle: whose hashes were checked.
        plan: whose record says that its answers are unverified.
        machine: that loads it.
    """

    bundle: Bundle
    plan: Plan
    machine: Machine

    @property
    def path(self) -> Path:
        """Return where the outcome is recorded."""
        digest = hashlib.sha256(canonical(self._about).encode(errors="surrogatepass")).hexdigest()
        return self.plan.path.with_suffix(f".{digest[:_SHOWN]}{VERIFIED_SUFFIX}")

    def is_over(self) -> bool:
        """Return whether the engine passed here before.

        Raises:
            BackendUnavailableError: it failed here before.
        """
        outcome = self._recorded()
        if outcome is not None:
            self._refuse_failed(outcome["failures"])
        return outcome is not None

    def verify(self, engine: Backend) -> None:
        """Hold the engine to the gates of its bundle, and record the outcome.

        Args:
            engine: that was loaded from the plan.

        Raises:
            BackendUnavailableError: it failed.

        Warns:
            CalipsoWarning: the bundle carries no answers to compare with, or the outcome cannot be recorded.
        """
        if read_reference(self.bundle) is None:
            message = (
                f"the answers of {self.plan.path} are unverified: {self.bundle.path} carries none to compare with. "
                "Load a bundle's directory that was exported without --no-reference"
            )
            warnings.warn(message, CalipsoWarning, stacklevel=2)
            return
        ranges = [(each.least, each.most) for each in self.plan.record.options.profiles]
        parity = verify_engine(engine, self.bundle, batches=batch_sizes(*ranges))
        self._record({**self._about, "failures": list(parity.failures), "worst": parity.as_json()["worst"]})
        self._refuse_failed(parity.failures)

    @property
    def _about(self) -> dict[str, Any]:
        return {
            "plan": self.plan.record.plan["sha256"],
            "gpu": self.machine.gpu,
            "driver": devices.driver_release(),
            "library": self.machine.compiler,
        }

    def _recorded(self) -> Mapping[str, Any] | None:
        """Return the outcome; None where there is none, or one that is damaged."""
        try:
            document: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
            claimed = document.pop("sha256")
            is_whole = claimed == _digest(document) and isinstance(document["failures"], list)
        except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
            return None
        is_same = all(document.get(name) == value for name, value in self._about.items())
        return document if is_whole and is_same else None

    def _record(self, document: dict[str, Any]) -> None:
        whole = {**document, "sha256": _digest(document)}
        try:
            write_file(self.path, (json.dumps(whole, ensure_ascii=False, indent=2) + "\n").encode())
        except OSError as error:
            message = (
                f"the engine's answers were compared, but {self.path} cannot be written ({error.strerror or error}): "
                "they are compared again at every load"
            )
            warnings.warn(message, CalipsoWarning, stacklevel=2)

    def _refuse_failed(self, failures: Any) -> None:
        if not failures:
            return
        message = (
            f"{self.plan.path} does not answer like eager PyTorch on {self.machine.gpu} and is not used: "
            f"{'; '.join(failures)}. Build it again: {build_command(self.bundle, self.machine)}; or export with "
            "another --precision"
        )
        raise BackendUnavailableError(message)


def _digest(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(document).encode(errors="surrogatepass")).hexdigest()
