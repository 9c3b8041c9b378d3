"""Accuracy: the figures are the textbook's, and the reports show them whatever the classes are called."""

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from report_samples import accuracy_document

from calipso_bench import accuracy
from calipso_bench.accuracy import figures
from calipso_bench.accuracy.figures import mcnemar, share
from calipso_bench.plots.confusion import confusion_figure

CLASSES = ("ant", "bee", "crab")


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return accuracy_document()


def test_many_classes_are_drawn_without_their_names() -> None:
    labels = [f"class {index}" for index in range(300)]
    answers = {"truth": list(range(300)), "deployed": {"best": [*range(1, 300), 0]}}

    text = confusion_figure({"labels": labels, "answers": answers}, name="x")

    assert "class 7" not in text
    assert "data:image/png;base64" in text


def test_wilson_and_mcnemar_are_the_textbook_values() -> None:
    # Wilson's interval of 1 in 10: (0.0179, 0.4042). Source: any table of it.
    low, high = share(1, 10)["interval_95"]
    assert (round(low, 4), round(high, 4)) == (0.0179, 0.4042)
    # Six pictures on one side only, one on the other: 2 * (1 + 7) / 2**7.
    first = np.array([True] * 6 + [False] * 1 + [True] * 20)
    second = np.array([False] * 6 + [True] * 1 + [True] * 20)
    assert mcnemar(first, second) == {"only_first": 6, "only_second": 1, "p_value": pytest.approx(0.125)}


def test_what_a_class_is_mistaken_for_is_the_most_frequent_wrong_answer() -> None:
    truth, answers = np.array([0, 0, 0, 0, 2]), np.array([0, 1, 1, 2, 2])

    rows = figures.per_class(truth, truth, answers, CLASSES)

    assert rows == [
        {"label": "ant", "pictures": 4, "eager": 4, "deployed": 1, "mistaken_for": {"label": "bee", "count": 2}},
        {"label": "crab", "pictures": 1, "eager": 1, "deployed": 1, "mistaken_for": None},
    ]


def test_the_markdown_shows_both_sides_the_branches_and_the_classes(document: dict[str, Any]) -> None:
    text = accuracy.markdown(document)

    for shown in (
        "| eager PyTorch |",
        "| deployed |",
        "| + CALIP |",
        "| crab |",
        "McNemar's exact test",
        "RANDOM weights",
    ):
        assert shown in text
    assert "1 pictures could not be read: bee/broken.jpg" in text


def test_the_page_is_one_file_in_which_names_are_data(document: dict[str, Any]) -> None:
    hostile = "<b>bee</b> | $x$ 蜂"
    changed = json.loads(json.dumps(document).replace('"bee"', json.dumps(hostile)))

    text = accuracy.page(changed)

    assert "<b>bee" not in text
    assert "&lt;b&gt;bee&lt;/b&gt; | $x$ 蜂" in text
    assert "<h2>Confusion</h2>" in text
    assert "http" not in text.replace("http://www.w3.org/", "")
    assert "\\|" in accuracy.markdown(changed)


def test_importing_it_does_not_import_torch() -> None:
    program = "import sys; import calipso_bench.accuracy; assert 'torch' not in sys.modules, 'torch'"

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
