"""How many pictures ONNX Runtime is asked at once: what the written graph says of itself."""

from pathlib import Path

import onnxruntime
import pytest

from calipso_export.steps.write import run_batch
from calipso_runtime.graph_file import METADATA_RUN_BATCH, MODEL_FILE, ORT_FILES


@pytest.mark.parametrize(
    ("rows", "maps", "pictures"), [(50, 1, 8), (197, 1, 2), (1025, 1, 1), (None, 1, 2), (None, 6, 1)]
)
def test_products_of_about_400_rows_and_two_maps_are_run_at_once(rows: int | None, maps: int, pictures: int) -> None:
    assert run_batch(rows, maps=maps) == pictures


def test_the_graph_for_onnx_runtime_says_how_many_pictures_it_runs_fastest(bundle: Path) -> None:
    session = onnxruntime.InferenceSession(bundle / ORT_FILES[MODEL_FILE], providers=["CPUExecutionProvider"])

    assert int(session.get_modelmeta().custom_metadata_map[METADATA_RUN_BATCH]) >= 1
