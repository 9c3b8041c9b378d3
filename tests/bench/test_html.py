"""The page: everything that was measured, in one file that loads nothing, whatever the names in it."""

import re
from html.parser import HTMLParser
from typing import Any

import pytest
from report_samples import SPEEDS, document, without

from calipso_bench.html import page

# One cell, quickly drawn.
SMALL: dict[str, Any] = {
    "batches": (1,),
    "threads": (1,),
    "stages": ("classify",),
    "scenarios": ("latency",),
    "count": 8,
    "processes": [],
}
SECTIONS = {
    "In short",
    "Who took part",
    "The same answers?",
    "Latency",
    "Throughput",
    "Speed against fidelity",
    "Roofline",
    "Cold start and memory",
    "MLPerf LoadGen",
    "Measured on",
}


class Reader(HTMLParser):
    """What is in a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        self.ids += [values["id"]] if values.get("id") else []
        self.links += [value for key, value in attrs if value and key in ("src", "href", "xlink:href")]
        if tag in ("h1", "h2", "table", "figure", "svg", "details"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.open and tag == self.open[-1]:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def whole() -> str:
    return page(document(batches=(1, 8), threads=(1, 2), stages=("encode", "classify"), count=20))


def test_the_page_loads_nothing_and_runs_nothing(whole: str) -> None:
    found = Reader(whole)

    assert found.open == []
    assert not {"script", "link", "img", "iframe", "object"} & set(found.tags)
    assert all(link.startswith(("#", "data:")) for link in found.links)
    assert "@import" not in whole
    assert not re.search(r"url\((?!#)", whole)


def test_every_section_and_plot_is_there(whole: str) -> None:
    found = Reader(whole)
    text = " ".join(found.text)

    assert set(re.findall("<h2>(.*?)</h2>", whole)) == SECTIONS
    # Latency: two stages, two numbers of threads; throughput and fidelity: two each; a roofline; processes.
    assert found.tags.count("svg") == 4 + 2 + 2 + 1 + 1
    assert "no CUDA device is on this machine" in text
    assert 'name=viewport content="width=device-width' in whole


def test_no_two_plots_share_an_id_and_every_reference_leads_somewhere(whole: str) -> None:
    found = Reader(whole)
    references = {link[1:] for link in found.links if link.startswith("#")} | set(re.findall(r"url\(#([^)]+)\)", whole))

    assert len(found.ids) == len(set(found.ids))
    assert references
    assert references <= set(found.ids)


def test_the_same_document_is_the_same_page() -> None:
    assert page(document(**SMALL)) == page(document(**SMALL))


def test_the_page_names_the_instruction_sets_where_they_were_recorded() -> None:
    older, newer = document(**SMALL), document(**SMALL)
    newer["environment"]["instruction_sets"] = ["avx2", "fma"]

    assert "On A CPU &lt;64&gt; &amp; more, 2 cores. " in page(older)
    assert "On A CPU &lt;64&gt; &amp; more (avx2, fma), 2 cores. " in page(newer)


def test_names_are_data() -> None:
    hostile = '<script>alert("x")</script> $\\alpha$ $ 猫'
    changed = document(**SMALL)
    changed["bundle"]["name"] = hostile
    changed["environment"]["cpu"] = hostile
    changed["contenders"][0]["about"] = hostile
    for cell in changed["cells"]:
        cell["samples_ms"][hostile] = cell["samples_ms"]["eager"]
    changed["verification"][hostile] = changed["verification"]["eager"]

    text = page(changed)

    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "猫" in text


def test_an_unstable_cell_is_named_with_the_command_that_measures_it_longer() -> None:
    changed = document(**SMALL, noise=0.0)
    changed["cells"][0]["samples_ms"]["openvino"] = [1.0, 2.0, 1.0, 2.0]

    text = page(changed)

    assert "1 unstable cells" in text
    assert (
        "<code>calipso bench ViT-B-32.calipso --against eager,compile,ort-plain,openvino --scenario latency "
        "--stages classify --batch 1 --threads 1 --seconds 20</code>" in text
    )


def test_time_on_the_device_has_a_column_where_it_was_measured() -> None:
    changed = document(**SMALL)
    assert "device ms" not in page(changed)

    changed["cells"][0]["device_ms"] = {"eager": [12.5, 12.5]}

    text = page(changed)
    assert "device ms" in text
    assert "<td class=number>12.5</td>" in text


def test_a_stable_run_has_no_warning() -> None:
    assert "unstable" not in page(document(**SMALL, noise=0.001))


@pytest.mark.parametrize(
    ("changes", "absent"),
    [
        (
            {"work": None, "processes": [], "loadgen": [], "scenarios": ["latency"]},
            {"Roofline", "Cold start and memory", "MLPerf LoadGen", "Throughput"},
        ),
        (
            {"machine": {}, "scenarios": ["throughput"]},
            {"Roofline", "Latency", "Speed against fidelity", "In short", "Cold start and memory"},
        ),
    ],
)
def test_a_section_without_measurements_is_left_out(changes: dict[str, Any], absent: set[str]) -> None:
    headings = set(re.findall("<h2>(.*?)</h2>", page(document(**{**SMALL, **changes}))))

    assert SECTIONS - headings == absent


def test_a_run_of_the_bundle_alone_has_a_page() -> None:
    text = page(without(document(**SMALL), *(name for name in SPEEDS if not name.startswith("bundle/"))))

    assert "<h2>Latency</h2>" in text
    assert "<h2>In short</h2>" not in text


def test_an_empty_run_has_a_page_that_says_it_is_not_finished() -> None:
    nothing: dict[str, Any] = {"scenarios": [], "processes": [], "loadgen": [], "machine": {}, "verification": {}}

    text = page(document(**nothing, work=None, finished=False))

    assert "not finished" in text
    assert "<svg" not in text


def test_an_invalid_loadgen_run_is_shown_as_such() -> None:
    changed = document(**SMALL)
    changed["loadgen"][0].update(valid=False, why_invalid=["Reduce target QPS to improve latency."])

    assert "INVALID: Reduce target QPS to improve latency." in page(changed)
