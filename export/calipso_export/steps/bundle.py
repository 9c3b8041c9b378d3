"""Bundle: parity, report and manifest beside the graph. The pipeline then moves the folder into place."""

import dataclasses
import json
from typing import Any, ClassVar

from calipso_export.config import ExportConfig
from calipso_export.progress import Progress
from calipso_export.report import report_html
from calipso_export.step import Made, WorkFolder
from calipso_export.steps.tune import HeadRecord
from calipso_export.steps.write import Graph
from calipso_runtime.bundle import MANIFEST_FILE, PARITY_FILE, REPORT_FILE, SEARCH_FILE, file_entry
from calipso_runtime.manifest import Manifest, write_manifest
from calipso_runtime.parity import FailedParityError, Parity


class WriteBundle:
    """Write the remaining files, or refuse to where a gate failed."""

    requires: ClassVar[tuple[type, ...]] = (ExportConfig, WorkFolder, HeadRecord, Graph, Parity)
    ensures: ClassVar[tuple[type, ...]] = (Manifest,)

    def run(self, made: Made, progress: Progress) -> None:
        """See `Step.run`."""
        progress("writing the bundle", 0, 1)
        config, parity, folder = made[ExportConfig], made[Parity], made[WorkFolder].path
        if parity.failures and not config.force:
            failures = "\n  ".join((*parity.failures, *_tried(parity.document)))
            message = (
                f"the exported file does not answer like eager PyTorch, and no bundle was written:\n  {failures}\n"
                "--force writes it all the same, marked `parity: failed`"
            )
            raise FailedParityError(message, parity)
        document = json.dumps(parity.as_json(), indent=2, ensure_ascii=False)
        (folder / PARITY_FILE).write_text(document + "\n", encoding="utf-8")
        core = dataclasses.replace(made[Graph].manifest, parity=parity.status)
        curves = made[HeadRecord].curves
        if curves:
            (folder / SEARCH_FILE).write_text(json.dumps(curves) + "\n", encoding="utf-8")
        (folder / REPORT_FILE).write_text(report_html(core, parity.document, curves), encoding="utf-8")
        files = {path.name: file_entry(path) for path in sorted(folder.iterdir())}
        manifest = dataclasses.replace(core, files=files)
        write_manifest(folder / MANIFEST_FILE, manifest)
        made.add(manifest)
        progress("writing the bundle", 1, 1)


def _tried(document: dict[str, Any]) -> list[str]:
    """Of "auto": why each precision before the last was not taken."""
    return [f"{point['precision']}: {'; '.join(point['failures'])}" for point in document.get("frontier", [])[:-1]]
