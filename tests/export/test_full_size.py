"""Models of real size, with random weights: exported and verified within minutes and a few gigabytes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from export_samples import unit_vectors

CLASSES, SHOTS = 20, 4
MOST_SECONDS = 180
MOST_GIB = 4.0
PROGRAM = """
import json, resource, sys, time
from calipso_export import ExportConfig, export
start = time.perf_counter()
config = ExportConfig(**json.loads(sys.argv[1]))
_, parity = export(config)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(json.dumps({"seconds": time.perf_counter() - start, "gib": peak, **parity.document}))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("model", "width"), [("ViT-B-32", 512), ("RN50", 1024)])
def test_a_model_of_real_size_is_exported_and_verified(tmp_path: Path, model: str, width: int) -> None:
    keys = unit_vectors(np.random.default_rng(0), CLASSES * SHOTS, width)
    np.savez(tmp_path / "keys.npz", keys=keys, labels=np.arange(CLASSES).repeat(SHOTS))
    config = {
        "model": model,
        "random_init": 0,
        "classes": [f"class {index}" for index in range(CLASSES)],
        "templates": "photo",
        "cache_file": str(tmp_path / "keys.npz"),
        "alpha": 1.17,
        "beta": 5.5,
        "b2": 1.12,
        "b3": 0.02,
        "output": str(tmp_path / "out.calipso"),
    }

    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(config)], capture_output=True, check=False, text=True
    )

    assert result.returncode == 0, result.stderr
    measured = json.loads(result.stdout)
    assert measured["status"] == "passed"
    assert measured["worst"]["relative_logit_error"] < 1e-4
    assert measured["worst"]["top1_agreement"] == 1.0
    assert measured["seconds"] < MOST_SECONDS
    assert measured["gib"] < MOST_GIB
