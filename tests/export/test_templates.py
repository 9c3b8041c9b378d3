"""Prompt templates by name or file, prompts per class, and every file that holds neither."""

import json
from pathlib import Path

import open_clip
import pytest
from export_samples import answer_or_refusal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calipso_export.templates import DEFAULT_TEMPLATES, TEMPLATE_NAMES, read_prompts
from calipso_runtime.errors import CalipsoError, UsageError

CLASSES = ("ant", "sea horse")
EXAMPLES = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(path: Path, content: object) -> str:
    path.write_bytes((content if isinstance(content, str) else json.dumps(content)).encode())
    return str(path)


@pytest.mark.parametrize("name", TEMPLATE_NAMES)
def test_every_name_gives_templates_with_a_place_for_the_class(name: str) -> None:
    prompts = read_prompts(name, CLASSES)

    assert prompts.source == name
    assert all("sea horse" in prompt and "{}" not in prompt for prompt in prompts.of("sea horse"))


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("imagenet-80", open_clip.OPENAI_IMAGENET_TEMPLATES),
        (DEFAULT_TEMPLATES, open_clip.SIMPLE_IMAGENET_TEMPLATES),
    ],
)
def test_the_imagenet_sets_are_open_clips(name: str, theirs: tuple[object, ...]) -> None:
    assert read_prompts(name, CLASSES).of("ant") == tuple(template("ant") for template in theirs)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("own.txt", "a {}.\r\n\r\n the {} \r\n"),
        ("own.txt", "\N{BYTE ORDER MARK}a {}.\nthe {}"),
        ("own.json", ["a {}.", "the {}"]),
        ("own.json", {"templates": ["a {}.", "the {}"]}),
        ("own.toml", 'templates = ["a {}.", "the {}"]'),
    ],
)
def test_templates_come_from_a_file(tmp_path: Path, name: str, content: object) -> None:
    prompts = read_prompts(write(tmp_path / name, content), CLASSES)

    assert prompts.of("ant") == ("a ant.", "the ant")
    assert prompts.as_json() == {"source": name, "templates": ["a {}.", "the {}"], "per_class": None}


def test_prompts_per_class_are_taken_as_they_are(tmp_path: Path) -> None:
    own = {"sea horse": ["a fish", "a {} on a horse"], "ant": ["an insect"], "unused": ["nothing"]}

    prompts = read_prompts(write(tmp_path / "cupl.json", own), CLASSES)

    assert prompts.of("sea horse") == ("a fish", "a {} on a horse")
    assert list(prompts.as_json()["per_class"]) == list(CLASSES)


def test_a_class_name_with_braces_is_put_in_as_it_is() -> None:
    assert read_prompts("photo", CLASSES).of("{0} {x}") == ("a photo of a {0} {x}.",)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"no templates are called 'imagenet'.* Known: imagenet-7, imagenet-80, photo"):
        read_prompts("imagenet", CLASSES)


def test_classes_without_prompts_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "cupl.json", {"ant": ["an insect"], "bee": ["x"]})

    with pytest.raises(UsageError, match=r"no prompts for 'sea horse'; it has them for ant, bee"):
        read_prompts(path, CLASSES)


@pytest.mark.parametrize("prompts", [[], "an insect", [3], [""], None])
def test_a_class_whose_prompts_are_no_list_is_named(tmp_path: Path, prompts: object) -> None:
    path = write(tmp_path / "cupl.json", {"ant": prompts, "sea horse": ["a fish"]})

    with pytest.raises(UsageError, match=r"must give every class a list of prompts; these have none: ant"):
        read_prompts(path, CLASSES)


@pytest.mark.parametrize("template", ["a photo", "{} and {}", "a {0}"])
def test_a_template_without_exactly_one_place_is_named(tmp_path: Path, template: str) -> None:
    with pytest.raises(UsageError, match=r"own\.txt has templates without exactly one \{\}"):
        read_prompts(write(tmp_path / "own.txt", f"a {{}}.\n{template}\n"), CLASSES)


@pytest.mark.parametrize(
    ("name", "content"),
    [("own.txt", ""), ("own.json", "[]"), ("own.json", "3"), ("own.json", '[["{}"]]'), ("own.toml", "templates = 3")],
)
def test_a_file_without_templates_is_refused(tmp_path: Path, name: str, content: str) -> None:
    with pytest.raises(UsageError, match=rf"{name} holds no list of templates"):
        read_prompts(write(tmp_path / name, content), CLASSES)


@EXAMPLES
@given(content=st.text(st.characters(exclude_categories=["Cs"])))
@pytest.mark.parametrize("suffix", ["txt", "json", "toml"])
def test_any_file_is_read_or_refused(tmp_path: Path, suffix: str, content: str) -> None:
    path = write(tmp_path / f"own.{suffix}", content)

    prompts, refusal = answer_or_refusal(read_prompts, path, CLASSES)

    found = [] if prompts is None else prompts.of("ant")
    assert f"own.{suffix}" in refusal or all("ant" in prompt for prompt in found)


@EXAMPLES
@given(source=st.text(max_size=600))
def test_any_name_is_known_or_refused(source: str) -> None:
    if source in TEMPLATE_NAMES:
        return
    with pytest.raises(CalipsoError):
        read_prompts(source, CLASSES)
