"""The tables of hosts: ratios of neighbouring rounds, a reason for every empty cell, and answers in their places."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks import host_servers, host_tables, hosts, throughput

ENVIRONMENT = {"cpu": "cpu", "cores": 2}


def row(host: str, own: list[list[float]], python: list[list[float]]) -> dict[str, Any]:
    return {
        "host": host,
        "environment": ENVIRONMENT,
        "busy_percent": 3.0,
        "photographs": 630,
        "agreement": 0.995,
        "relative_logit_error": 2e-6,
        "samples_ms": own,
        "python_ms": python,
    }


def table_of(rows: list[dict[str, Any]], folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (folder / "hosts.json").write_text(json.dumps({"rows": rows}))
    monkeypatch.setattr(host_tables, "RESULTS", folder)
    return host_tables.hosts_table()


def test_a_ratio_is_of_rounds_that_were_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The second round was disturbed, for both alike.
    found = row("C++", [[2, 2, 9], [20, 20, 20], [6, 6, 6]], [[4, 4, 4], [40, 40, 40], [6, 6, 6]])

    text = table_of([row("Python", [[4]], [[4]]), found], tmp_path, monkeypatch)

    assert host_tables.ratios(found) == [0.5, 0.5, 1.0]
    assert "| C++ | 99.50% | 2.0e-06 | 6.0 | 0.50 (0.50 to 1.00) |" in text
    assert "| Python | 99.50% | 2.0e-06 | 4.0 | 1 |" in text


def test_an_empty_row_has_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = table_of(
        [row("Python", [[4]], [[4]]), {"host": "browser", "reason": "there is no Chromium"}], tmp_path, monkeypatch
    )

    assert "| browser | - | - | - | - |" in text
    assert "- browser: not measured, there is no Chromium." in text
    assert "Other work" not in text


def work(host: str, at_once: str, seconds: list[float], process: list[float], apart_s: float = 0.0) -> dict[str, Any]:
    return {
        "host": host,
        "at_once": at_once,
        "environment": ENVIRONMENT,
        "busy_percent": 3.0,
        "photographs": 50,
        "pictures": 100,
        "agreement": 1.0,
        "relative_logit_error": 1e-6,
        "seconds": seconds,
        "apart_s": [apart_s] * len(seconds),
        "process_seconds": process,
    }


def test_throughput_leaves_ray_s_start_out_and_tells_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [work("Ray Data", "2 workers", [2.0, 4.0, 2.5], [4.0, 4.0, 4.0], 9.0), work("Triton", "1 client", [8], [4])]
    (tmp_path / "throughput.json").write_text(json.dumps({"rows": rows}))
    monkeypatch.setattr(host_tables, "RESULTS", tmp_path)

    text = host_tables.throughput_table()

    assert "| Python | 1 process |  |  | 25 | 1 | - |" in text
    assert "| Ray Data | 2 workers | 100.00% | 1.0e-06 | 40 | 1.60 (1.00 to 2.00) | 9.0 |" in text
    assert "| Triton | 1 client | 100.00% | 1.0e-06 | 12 | 0.50 (0.50 to 0.50) | - |" in text


def test_what_was_measured_beside_other_work_has_no_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet, busy = work("Ray Data", "1 worker", [2], [4]), work("Ray Data", "2 workers", [1], [9])
    rows = [quiet, {**busy, "busy_percent": 40.0}]
    (tmp_path / "throughput.json").write_text(json.dumps({"rows": rows}))
    monkeypatch.setattr(host_tables, "RESULTS", tmp_path)

    text = host_tables.throughput_table()

    assert "| Python | 1 process |  |  | 25 | 1 | - |" in text
    assert "| Ray Data | 2 workers | 100.00% | 1.0e-06 | - | - | - |" in text
    assert "Not timed, as other work kept at least 40% of the machine busy: Ray Data (2 workers)." in text


def test_latencies_beside_other_work_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{**row("Python", [[4]], [[4]]), "busy_percent": 40.0}]

    assert "Other work kept up to 40% of the machine busy." in table_of(rows, tmp_path, monkeypatch)


def test_a_host_that_is_not_here_leaves_what_was_measured_elsewhere(tmp_path: Path) -> None:
    file, reason = tmp_path / "hosts.json", {"host": "Ray Serve", "reason": "Ray is not installed"}

    def rows() -> Any:
        return json.loads(file.read_text())["rows"]

    hosts.keep_row(file, "what", reason)
    assert rows() == [reason]
    hosts.keep_row(file, "what", {"host": "Ray Serve", "agreement": 1.0})
    hosts.keep_row(file, "what", reason)
    assert rows() == [{"host": "Ray Serve", "agreement": 1.0}]
    hosts.keep_row(file, "what", {"host": "Ray Serve", "agreement": 0.5})
    assert rows() == [{"host": "Ray Serve", "agreement": 0.5}]


def test_rows_of_one_host_are_told_apart_by_how_many_ask(tmp_path: Path) -> None:
    file = tmp_path / "throughput.json"
    reason = {"host": "Triton", "at_once": "", "reason": "no server"}
    for row in (reason, *({"host": "Triton", "at_once": number} for number in ("1 client", "2 clients", "1 client"))):
        hosts.keep_row(file, "what", row, ("host", "at_once"))

    assert [row["at_once"] for row in json.loads(file.read_text())["rows"]] == ["1 client", "2 clients"]


@contextmanager
def digits(_: Path) -> Iterator[host_servers.Connect]:
    """A server whose logits are what the file says, in the order of the largest."""

    @contextmanager
    def connect() -> Iterator[host_servers.Client]:
        def client(content: bytes) -> Mapping[str, float]:
            logits = dict(zip("ab", map(float, content.split()), strict=True))
            return dict(sorted(logits.items(), key=lambda each: -each[1]))

        yield client

    yield connect


@pytest.mark.parametrize("clients", [1, 2, 3, 7])
def test_answers_of_several_clients_are_in_the_order_of_the_files(
    clients: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / f"{number}" for number in range(7)]
    for number, path in enumerate(files):
        path.write_text(f"{number} {3 * number - 5}")
    for module in (host_servers, throughput):
        monkeypatch.setattr(module, "labels_of", lambda _: ["a", "b"])

    with throughput.clients_of(digits)(tmp_path) as run:
        found = run(files, clients).logits
    with host_servers.one_by_one(digits)(tmp_path) as ask:
        one_by_one = ask(files)

    expected = np.array([[number, 3 * number - 5] for number in range(7)], np.float32)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(one_by_one.logits, expected)
    assert len(one_by_one.milliseconds) == 7


def test_an_error_is_relative_to_the_largest_logit_of_its_picture() -> None:
    eager = np.array([[10.0, 0.0], [1.0, 2.0]], np.float32)

    found = hosts.differences(np.array([[10.0, 1.0], [2.5, 2.0]], np.float32), eager)

    assert found == {"agreement": 0.5, "relative_logit_error": 0.75}


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("browser (WebGPU)", "no GPU"),
        ("Triton (ONNX Runtime)", "has the Python back end alone"),
        ("Triton (TensorRT)", "has the Python back end alone"),
    ],
)
def test_a_host_of_which_nothing_was_seen_says_why(host: str, reason: str, tmp_path: Path) -> None:
    row = hosts.measured(host, tmp_path, [], np.zeros((0, 2), np.float32), {})

    assert row["host"] == host
    assert reason in row["reason"]
