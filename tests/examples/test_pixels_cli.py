"""`calipso classify` on a bundle of raw pixels: Python beside the hosts whose tests are next to this one."""

import json
from pathlib import Path

from bad_inputs import bad_pictures, two_channels
from click.testing import CliRunner
from host_samples import CLOSE, plain_pictures, same_as_python, unusable_bundles

from calipso_runtime.cli import calipso


def test_bad_pictures_are_told_and_the_others_answered(pixel_bundles: Path, tmp_path: Path) -> None:
    bad = {tmp_path / name: given for name, given in bad_pictures().items()}
    for path, (content, _) in bad.items():
        path.write_bytes(content)
    plain = plain_pictures(tmp_path / "plain")
    (tmp_path / "two.png").write_bytes(two_channels())
    good = [*plain, tmp_path / "two.png"]

    arguments = ["classify", str(pixel_bundles / "any"), *map(str, (*bad, *good)), "--json", "--threads", "1"]
    result = CliRunner().invoke(calipso, arguments)

    assert result.exit_code == 1
    *told, summary = result.stderr.splitlines()
    for (path, (_, word)), line in zip(bad.items(), told, strict=True):
        assert line.startswith(f"error: {path} ")
        assert word in line
    assert summary == f"error: {len(bad)} of {len(bad) + len(good)} pictures could not be read"
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert same_as_python(pixel_bundles / "any", good, answers) < CLOSE


def test_bundles_that_cannot_be_used_are_told(pixel_bundles: Path, tmp_path: Path) -> None:
    for name, said in unusable_bundles(pixel_bundles, tmp_path / "unusable"):
        path = tmp_path / "unusable" / name
        result = CliRunner().invoke(calipso, ["classify", str(path), "picture.png"])

        assert (result.exit_code, result.stdout) == (1, ""), name
        assert result.stderr.startswith(f"error: {path}"), (said, result.stderr)
