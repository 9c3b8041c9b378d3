"""The store of encoded photos: exact, shared between processes, and clear about what is damaged."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from export_samples import answer_or_refusal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calipso_export.fewshot.store import FeatureStore, key_of
from calipso_runtime.caching import cache_folder
from calipso_runtime.errors import UsageError
from child_process import child

EXAMPLES = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def vector(seed: int, length: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(length).astype(np.float32)


def test_a_vector_comes_back_bit_for_bit_in_another_session(tmp_path: Path) -> None:
    value = np.array([0.0, -0.0, 1e-40, np.inf, 3.14], dtype=np.float32)
    with FeatureStore(tmp_path) as store:
        store.put("key", value)

    with FeatureStore(tmp_path) as store:
        found = store.get("key", 5)

    assert found is not None
    assert found.tobytes() == value.tobytes()


def test_an_unknown_key_and_another_length_are_not_there(tmp_path: Path) -> None:
    with FeatureStore(tmp_path) as store:
        store.put("key", vector(0))

        assert store.get("other", 40) is None
        assert store.get("key", 41) is None


def test_a_key_depends_on_every_part() -> None:
    keys = {key_of(a=1, b=2), key_of(a=2, b=1), key_of(a=1), key_of(a=1, b="2"), key_of(b=2, a=1)}

    assert len(keys) == 4


def test_the_default_folder_can_be_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALIPSO_CACHE", "/elsewhere")
    assert cache_folder() == Path("/elsewhere")
    monkeypatch.delenv("CALIPSO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/calipso")


@pytest.mark.parametrize("content", [b"no database at all" * 100, b"SQLite format 3\0" + b"x" * 200])
def test_a_file_that_is_no_database_is_said(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "features.sqlite").write_bytes(content)

    with pytest.raises(UsageError, match=r"features\.sqlite: .*--feature-cache DIR, or delete the file"):
        FeatureStore(tmp_path)


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")

    with pytest.raises(UsageError, match="encoded photos cannot be kept in"):
        FeatureStore(tmp_path / "file" / "below")


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The content of a store with 200 vectors."""
    folder = tmp_path_factory.mktemp("filled")
    with FeatureStore(folder) as store:
        for index in range(200):
            store.put(f"{index}", vector(index))
    return (folder / "features.sqlite").read_bytes()


@EXAMPLES
@given(share=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
def test_a_damaged_database_never_gives_a_traceback(tmp_path: Path, filled: bytes, share: float, byte: int) -> None:
    content = bytearray(filled)
    start = int(share * len(content))
    content[start : start + 2000] = bytes([byte]) * len(content[start : start + 2000])
    for path in tmp_path.iterdir():
        path.unlink()
    (tmp_path / "features.sqlite").write_bytes(content)

    def use() -> int:
        with FeatureStore(tmp_path) as store:
            store.put("new", vector(0))
            return len([store.get(f"{index}", 40) for index in range(200)])

    found, refusal = answer_or_refusal(use)

    assert "features.sqlite" in refusal or found == 200


WRITER = """
import sys
from pathlib import Path
import numpy as np
from calipso_export.fewshot.store import FeatureStore
with FeatureStore(Path(sys.argv[1])) as store:
    for index in range(100):
        store.put(f"{sys.argv[2]}-{index}", np.full(40, float(index), dtype=np.float32))
        assert store.get(f"{sys.argv[2]}-{index}", 40) is not None
"""


def test_two_processes_share_a_store(tmp_path: Path) -> None:
    first, second = ([sys.executable, "-c", WRITER, tmp_path, name] for name in ("first", "second"))

    with child(first, stderr=subprocess.PIPE) as one, child(second, stderr=subprocess.PIPE) as other:
        errors = [process.communicate(timeout=60)[1] for process in (one, other)]

    assert errors == [b"", b""]
    with FeatureStore(tmp_path) as store:
        assert all(store.get(f"{name}-{index}", 40) is not None for name in ("first", "second") for index in range(100))


def test_many_threads_may_open_a_new_store_at_once(tmp_path: Path) -> None:
    def write(number: int) -> bool:
        with FeatureStore(tmp_path) as store:
            store.put(f"{number}", vector(number))
            return store.get(f"{number}", 40) is not None

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(write, range(64)))


def test_a_full_disk_does_not_end_an_export_that_can_go_on(tmp_path: Path) -> None:
    with FeatureStore(tmp_path) as store:
        store._database.execute("PRAGMA max_page_count = 3")
        for index in range(50):
            store.put(f"{index}", vector(index, 2000))

        assert store.get("49", 2000) is None
