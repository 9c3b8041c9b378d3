"""What does not go with a bundle that takes any labels is refused before any work."""

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from calipso_export import ExportConfig
from calipso_runtime.cli import calipso
from calipso_runtime.errors import UsageError


def config_of(**changes: Any) -> ExportConfig:
    return ExportConfig(**{"model": "ViT-B-32", "random_init": 0, "output": Path("x"), "head_mode": "open", **changes})


@pytest.mark.parametrize("mode", ["open", "embed"])
def test_classes_may_be_left_out(mode: str) -> None:
    assert config_of(head_mode=mode).classes == ()
    assert config_of(head_mode=mode).takes_labels


def test_a_baked_head_needs_classes() -> None:
    with pytest.raises(UsageError, match="no class names"):
        config_of(head_mode="baked")


@pytest.mark.parametrize("mode", ["open", "embed"])
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"shots": Path("shots")}, "example photos belong to classes"),
        ({"cache_file": Path("keys.npz"), "alpha": 1.0, "beta": 1.0}, "keys belong to classes"),
        ({"text_weights": Path("w.npz")}, "text features belong to classes"),
        ({"b2": 1.0, "b3": 1.0}, "CALIP is searched on example photos"),
        ({"input": "points"}, "it is 'image'"),
        ({"outputs": ("logits", "embedding", "tokens")}, "they are logits and embedding"),
        ({"outputs": ("logits",)}, "they are logits and embedding"),
        ({"precision": "auto"}, "name one"),
    ],
)
def test_what_needs_classes_is_refused_with_the_reason(changes: dict[str, Any], reason: str, mode: str) -> None:
    with pytest.raises(UsageError, match=reason):
        config_of(head_mode=mode, **changes)


@pytest.mark.parametrize("flags", [["--head-mode", "open"], ["--embed"]])
def test_calip_by_name_is_refused(flags: list[str], tmp_path: Path) -> None:
    arguments = ["export", "--model", "ViT-B-32", "--random-init", "0", "--calip", "-o", str(tmp_path / "x")]

    result = CliRunner().invoke(calipso, [*arguments, *flags])

    assert result.exit_code == 2
    assert "CALIP does not go with head modes open and embed" in result.stderr
    assert not (tmp_path / "x").exists()
