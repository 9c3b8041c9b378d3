"""The demo, on fewer pictures than `make demo` uses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_the_demo_ends_with_a_table_answers_and_a_contact_sheet(tmp_path: Path) -> None:
    record = tmp_path / "demo.json"
    arguments = ["--out", str(tmp_path / "out"), "--shots", "4", "--held-out", "2", "--record", str(record)]

    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "demo.py"), *arguments],
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "140", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(record.read_text())["rows"]
    assert [row["head"] for row in rows] == ["zero-shot", "+ CALIP", "+ Tip-Adapter", "+ both"]
    for row in rows:
        assert row["head"] in done.stdout
        assert (row["parity"], row["agreement"]) == ("passed", 1.0)
        assert row["eager"]["top1"] == row["shipped"]["top1"]
        assert row["relative_logit_error"] < 1e-4
    with Image.open(tmp_path / "out" / "contact-sheet.png") as sheet:
        assert sheet.width > 1000
