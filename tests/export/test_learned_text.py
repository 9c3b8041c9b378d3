"""Text features from a file: read, checked against the classes, exported, recorded, and verified again."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from export_samples import CLASSES, MakeConfig, unit_vectors
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from calipso_export import export
from calipso_export.learned_text import digest_of, read_text_weights
from calipso_export.progress import silent
from calipso_export.rebuild import rebuild
from calipso_runtime.cli import calipso
from calipso_runtime.errors import ClassListError, UsageError

WEIGHTS = unit_vectors(np.random.default_rng(7), 3, 32)


def write(path: Path, weights: Any = WEIGHTS, classes: Any = CLASSES) -> Path:
    if path.suffix == ".npz":
        np.savez(path, weights=weights, classes=np.array(classes))
    else:
        tensor = torch.from_numpy(np.ascontiguousarray(weights))
        save_file({"weights": tensor}, path, metadata={"classes": json.dumps(list(classes))})
    return path


@pytest.mark.parametrize("name", ["text.npz", "text.safetensors"])
def test_rows_are_brought_into_the_order_of_the_classes_and_to_length_1(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, 5 * WEIGHTS[[2, 0, 1]], [CLASSES[2], CLASSES[0], CLASSES[1]])

    read = read_text_weights(path, CLASSES, width=32)

    torch.testing.assert_close(read, torch.from_numpy(WEIGHTS))


@pytest.mark.parametrize("dtype", ["float16", "float64", ">f4"])
def test_weights_of_any_float_type_are_read(tmp_path: Path, dtype: str) -> None:
    path = write(tmp_path / "text.npz", WEIGHTS.astype(dtype))

    torch.testing.assert_close(read_text_weights(path, CLASSES, width=32), torch.from_numpy(WEIGHTS), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("changes", "error", "reason"),
    [
        ({"classes": ("ant", "bee", "cow")}, ClassListError, "lacks the classes: 'crab'"),
        ({"classes": ("ant", "bee", "bee")}, ClassListError, "has these classes twice: 'bee'"),
        (
            {"classes": (*CLASSES, "cow"), "weights": np.ones((4, 32), np.float32)},
            ClassListError,
            "has classes that were not given: 'cow'",
        ),
        ({"weights": WEIGHTS[:2]}, UsageError, r"weights \[2, 32\] and 3 classes: expected \[3,32\]"),
        ({"weights": WEIGHTS[:, :8]}, UsageError, r"weights \[3, 8\] and 3 classes: expected \[3,32\]"),
        ({"weights": WEIGHTS * np.nan}, UsageError, "NaN, infinite or all zero"),
        ({"weights": WEIGHTS * 0}, UsageError, "NaN, infinite or all zero"),
        ({"weights": np.ones((3, 32), np.int64)}, UsageError, "expected floats and names"),
    ],
)
@pytest.mark.parametrize("name", ["text.npz", "text.safetensors"])
def test_files_that_do_not_fit_are_refused(
    tmp_path: Path, name: str, changes: dict[str, Any], error: type[UsageError], reason: str
) -> None:
    path = write(tmp_path / name, **changes)

    with pytest.raises(error, match=reason):
        read_text_weights(path, CLASSES, width=32)


@settings(max_examples=40, deadline=None)
@given(keep=st.integers(0, 900), suffix=st.sampled_from([".npz", ".safetensors"]))
def test_a_file_that_was_cut_off_is_refused_by_name(
    tmp_path_factory: pytest.TempPathFactory, keep: int, suffix: str
) -> None:
    path = write(tmp_path_factory.mktemp("cut") / f"text{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: min(keep, len(content) - 40)])

    with pytest.raises(UsageError, match=r"is no readable \.npz"):
        read_text_weights(path, CLASSES, width=32)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"text.npz cannot be read: No such file"):
        digest_of(tmp_path / "text.npz")


@pytest.mark.slow
def test_an_export_carries_the_weights_and_is_verified_with_and_without_the_file(
    make_config: MakeConfig, tiny_vit: Path, tmp_path: Path
) -> None:
    path = write(tmp_path / "coop.npz", 3 * WEIGHTS)
    config = make_config(text_weights=path, templates="imagenet-7")

    manifest, parity = export(config)
    rebuilt = rebuild(config.output, manifest, checkpoint=None, model=str(tiny_vit), progress=silent)
    arguments = ["verify", str(config.output), "--model", str(tiny_vit), "--backend", "ort"]
    plain, given = (CliRunner().invoke(calipso, [*arguments, *more]) for more in ([], ["--text-weights", str(path)]))
    other = write(tmp_path / "other.npz")
    refused = CliRunner().invoke(calipso, [*arguments, "--text-weights", str(other)])

    assert parity.status == "passed"
    assert manifest.prompts == {
        "source": "coop.npz",
        "templates": [],
        "per_class": None,
        "text_weights": digest_of(path),
    }
    assert "text" not in parity.document["made_anew"]
    torch.testing.assert_close(rebuilt.heads.text, torch.from_numpy(WEIGHTS))
    assert (plain.exit_code, given.exit_code) == (0, 0), plain.output + given.output
    assert refused.exit_code == 1
    assert "is not the file that the text features of" in refused.output


def test_a_bundle_of_prompts_takes_no_text_weights(bundle: Path, tiny_vit: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "text.npz")

    arguments = ["verify", str(bundle), "--model", str(tiny_vit), "--text-weights", str(path)]
    result = CliRunner().invoke(calipso, arguments)

    assert result.exit_code == 1
    assert "was made from prompts (photo): leave out --text-weights" in result.output


def test_prompts_and_text_weights_are_not_given_together(make_config: MakeConfig) -> None:
    with pytest.raises(UsageError, match="text_weights replaces the prompts, and templates is 'photo'"):
        make_config(text_weights=Path("x.npz"))
