"""Prompts that the text tower cannot read to their end are told; shorter ones are not."""

import pytest
from export_samples import TEXT

from calipso_export.models import LoadedModel
from calipso_export.templates import Prompts
from calipso_export.text_weights import cut_classes

# Beside the words there are a start and an end.
MOST_WORDS = TEXT["context_length"] - 2
PROMPTS = Prompts(source="here", templates=("{}",))


@pytest.mark.parametrize(("words", "is_cut"), [(1, False), (MOST_WORDS, False), (MOST_WORDS + 1, True), (60, True)])
def test_a_class_is_cut_from_the_first_word_that_does_not_fit(vit: LoadedModel, words: int, is_cut: bool) -> None:
    long = " ".join(["cat"] * words)

    assert cut_classes(vit, ("dog", long), PROMPTS) == ([long] if is_cut else [])


def test_the_longest_prompt_of_a_class_counts(vit: LoadedModel) -> None:
    prompts = Prompts(source="here", templates=("{}", f"{'a ' * MOST_WORDS}{{}}"))

    assert cut_classes(vit, ("cat",), prompts) == ["cat"]
