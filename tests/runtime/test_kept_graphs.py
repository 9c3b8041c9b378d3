"""What is kept between processes: optimised graphs and hashes. It may be lost, and must never be wrong."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from runtime_samples import reference_logits

import calipso_runtime
from calipso_runtime import caching, devices, hashes
from calipso_runtime.backends import ort, ort_cache
from calipso_runtime.errors import BundleCorruptError

X = np.random.default_rng(0).uniform(-1, 1, (2, 3, 16, 16)).astype(np.float32)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache that keeps graphs of any size."""
    folder = tmp_path / "cache"
    monkeypatch.setenv(caching.CACHE_VARIABLE, str(folder))
    monkeypatch.setattr(ort_cache, "MIN_BYTES", 0)
    monkeypatch.setattr(hashes, "MIN_BYTES", 0)
    return folder


def entries(cache: Path) -> list[Path]:
    folder = cache / "optimised"
    return sorted(folder.iterdir()) if folder.is_dir() else []


def test_the_second_load_takes_the_graph_that_the_first_one_kept(cache: Path, tiny: Path) -> None:
    with calipso_runtime.load(tiny, backend="ort", keep_optimised=False) as plain:
        wanted = plain.logits(X)
        assert entries(cache) == []

    for _ in range(2):
        with calipso_runtime.load(tiny, backend="ort") as kept:
            assert "as optimised for this CPU before" in kept.backend_reason
            np.testing.assert_array_equal(kept.logits(X), wanted)
            assert kept.manifest.labels == plain.labels
    assert len(entries(cache)) == 1


def test_another_bundle_has_an_entry_of_its_own(cache: Path, tiny: Path, make_bundle) -> None:
    for path in (tiny, make_bundle(model={"name": "another"})):
        calipso_runtime.load(path, backend="ort").close()

    assert len(entries(cache)) == 2


@pytest.mark.parametrize("name", [ort_cache.GRAPH_FILE, ort_cache.ENTRY_FILE])
def test_an_entry_that_was_cut_is_made_again(cache: Path, tiny: Path, name: str) -> None:
    calipso_runtime.load(tiny, backend="ort").close()
    (entry,) = entries(cache)
    path = entry / name
    path.write_bytes(path.read_bytes()[:10])

    with calipso_runtime.load(tiny, backend="ort") as classifier:
        np.testing.assert_allclose(classifier.logits(X), reference_logits(X), atol=1e-5)
    assert ort_cache.find(entry) is not None


def test_an_entry_with_a_graph_that_cannot_be_opened_is_made_again(cache: Path, tiny: Path) -> None:
    calipso_runtime.load(tiny, backend="ort").close()
    (entry,) = entries(cache)
    graph = entry / ort_cache.GRAPH_FILE
    graph.write_bytes(b"x" * graph.stat().st_size)

    with calipso_runtime.load(tiny, backend="ort") as classifier:
        np.testing.assert_allclose(classifier.logits(X), reference_logits(X), atol=1e-5)


def test_a_cache_that_cannot_be_written_is_done_without(tiny: Path, cache: Path) -> None:
    cache.write_text("a file where the folder should be")

    with calipso_runtime.load(tiny, backend="ort") as classifier:
        assert "before" not in classifier.backend_reason
        np.testing.assert_allclose(classifier.logits(X), reference_logits(X), atol=1e-5)


def test_the_cache_can_be_switched_off(cache: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ort_cache.SWITCH_VARIABLE, "0")

    calipso_runtime.load(tiny, backend="ort").close()

    assert entries(cache) == []


def test_an_interrupted_write_leaves_nothing(cache: Path, tmp_path: Path) -> None:
    def interrupted(work: Path) -> dict[str, str]:
        (work / ort_cache.GRAPH_FILE).write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ort_cache.store(cache / "optimised" / "entry", interrupted)

    assert entries(cache) == []


def test_only_so_many_entries_are_kept_and_the_oldest_goes(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort_cache, "MOST_ENTRIES", 2)

    def write(work: Path) -> dict[str, str]:
        (work / ort_cache.GRAPH_FILE).write_bytes(b"graph")
        return {}

    folders = [ort_cache.entry_folder(str(number), graph="model.onnx", engine="e") for number in range(3)]
    for age, folder in zip((30, 20, 10), folders, strict=True):
        ort_cache.store(folder, write)
        os.utime(folder, (10**9 - age, 10**9 - age))

    ort_cache.store(folders[2], write)

    assert [folder.exists() for folder in folders] == [False, True, True]


def test_another_engine_or_cpu_has_another_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    def folder(engine: str) -> Path:
        return ort_cache.entry_folder("digest", graph="model.onnx", engine=engine)

    first, other_engine = folder("onnxruntime 1.31"), folder("onnxruntime 1.32")
    monkeypatch.setattr(devices, "cpu_flags", lambda: "sse2")

    assert len({first, other_engine, folder("onnxruntime 1.31")}) == 3


def test_the_graph_made_for_onnx_runtime_runs_on_x86_only(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = calipso_runtime.bundle.open_bundle(tiny)
    ported = type(chosen)(
        path=tiny, model_path=tiny / "model.onnx", manifest=None, digest="", ort_model_path=tiny / "model.onnx"
    )
    for machine, expected in (("x86_64", ported.ort_model_path), ("AMD64", ported.ort_model_path), ("aarch64", None)):
        monkeypatch.setattr(devices.platform, "machine", lambda machine=machine: machine)
        backend = ort.OrtCpuBackend.__new__(ort.OrtCpuBackend)

        assert backend._choose_graph(ported) == (expected or ported.model_path)


def test_a_large_batch_is_run_in_equal_parts(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    with calipso_runtime.load(tiny, backend="ort") as classifier:
        engine = classifier._head.now.engine
        engine.metadata = {**engine.metadata, "calipso.run-batch": "4"}
        real = engine._ask

        def ask(image: np.ndarray, outputs: tuple[str, ...]) -> dict[str, np.ndarray]:
            seen.append(len(image))
            return real(image, outputs)

        monkeypatch.setattr(engine, "_ask", ask)
        tensors = np.random.default_rng(3).uniform(-1, 1, (9, 3, 16, 16)).astype(np.float32)
        found = classifier.logits(tensors)

    assert seen == [3, 3, 3]
    np.testing.assert_allclose(found, reference_logits(tensors), atol=1e-5, rtol=1e-5)


def test_a_file_that_has_not_changed_is_not_hashed_again(cache: Path, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"weights")
    first = hashes.remembered_sha256_of(path)
    monkeypatch.setattr(hashes, "sha256_of", lambda _: pytest.fail("hashed again"))

    assert hashes.remembered_sha256_of(path) == first


def test_a_file_that_was_written_to_is_hashed_again_even_with_its_old_times(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"weights")
    first, times = hashes.remembered_sha256_of(path), path.stat()
    path.write_bytes(b"Weights")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    assert hashes.remembered_sha256_of(path) != first


def test_a_damaged_note_is_no_answer(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"weights")
    first = hashes.remembered_sha256_of(path)
    (note,) = (cache / "hashes").iterdir()
    for text in ("", "[]", "{}", json.dumps({"stamp": None, "sha256": "wrong"})):
        note.write_text(text)

        assert hashes.remembered_sha256_of(path) == first


def test_an_edited_bundle_is_refused_although_its_graph_is_kept(cache: Path, own: Path) -> None:
    calipso_runtime.load(own, backend="ort").close()
    model = own / "model.onnx"
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)

    with pytest.raises(BundleCorruptError, match="was changed after its export"):
        calipso_runtime.load(own, backend="ort")


@pytest.mark.parametrize(
    ("text", "expected"), [("max 100000", None), ("150000 100000", 2), ("50000 100000", 1), ("", None), ("x y", None)]
)
def test_a_containers_share_of_the_cpus_is_rounded_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: int | None
) -> None:
    (tmp_path / "cpu.max").write_text(text)
    monkeypatch.setattr(devices, "_CPU_MAX", tmp_path / "cpu.max")

    assert devices.cpu_quota() == expected
