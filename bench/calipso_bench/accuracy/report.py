"""The accuracy document for people: Markdown, and one page with the per-class table and the confusion picture."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from calipso_bench import web
from calipso_bench.accuracy.figures import TOP, confusions
from calipso_bench.markdown import table

Document = Mapping[str, Any]
_WORST_SHOWN = 10
_CONFUSIONS_SHOWN = 25
_FLIPS_SHOWN = 50
_COLUMNS = ("who", "top-1", "95 % interval", f"top-{TOP}", "95 % interval")


def markdown(document: Document) -> str:
    """Tables for the terminal and a README."""
    results = document["results"]
    unreadable = document["unreadable"]
    worst = [_class_row(row) for row in _worst_first(results["per_class"])[:_WORST_SHOWN]]
    parts = [
        f"{_lead(document)}\n",
        table(_COLUMNS, list(_sides(document))),
        f"{_test(document)}\n",
        table((*_COLUMNS, "against zero-shot"), list(_branch_rows(document))),
        f"classes, worst first ({len(worst)} of {len(results['per_class'])})\n",
        table(_CLASS_COLUMNS, [tuple(map(_plain, row)) for row in worst], words=2),
        *([f"{len(unreadable)} pictures could not be read: {_plain(unreadable[0]['reason'])}\n"] if unreadable else []),
    ]
    return "\n".join(parts)


def page(document: Document) -> str:
    """One self-contained page: no script, nothing loaded from elsewhere."""
    from calipso_bench.plots.confusion import confusion_figure
    from calipso_bench.plots.style import styled

    results, bundle = document["results"], document["bundle"]
    with styled():
        picture = confusion_figure(document, name="confusion")
    flips = [tuple(flip.values()) for flip in results["agreement"]["flips"]]
    random = "The weights are random: these figures mean nothing." if bundle["weights"] == "random" else ""
    few = f"There are only {len(document['labels'])} classes: top-{TOP} is always right."
    classes = [_class_row(row) for row in _worst_first(results["per_class"])]
    caption = (
        "What the deployed side calls the pictures of each class: rows are the right classes, each row adds up to 1."
    )
    unreadable = [each["reason"] for each in document["unreadable"]]
    return web.page(
        f"{bundle['model']}, {len(document['labels'])} classes: accuracy",
        [
            web.paragraph(_lead(document)),
            web.paragraph(random, "failed"),
            web.section("Deployed and eager", web.table(_COLUMNS, _sides(document)), web.paragraph(_test(document))),
            web.paragraph(few, "note") if len(document["labels"]) <= TOP else "",
            web.section(
                "With and without the branches",
                web.table((*_COLUMNS, "against zero-shot"), _branch_rows(document)),
                web.paragraph("Eager PyTorch, all from one pass through the tower; p by McNemar's exact test.", "note"),
            ),
            web.section("Confusion", web.figure(picture, caption)),
            web.section(
                "Most frequent mistakes",
                web.table(("right", "answered", "pictures"), confusions(document, _CONFUSIONS_SHOWN), words=2),
            ),
            web.section("Classes, worst first", web.table(_CLASS_COLUMNS, classes, words=2)),
            web.section(
                "Where deployed and eager differ",
                web.table(("picture", "right", "eager", "deployed"), flips[:_FLIPS_SHOWN], words=4),
                web.paragraph(f"{len(flips)} in all" if len(flips) > _FLIPS_SHOWN else "", "note"),
            ),
            web.section("Pictures that could not be read", web.items(unreadable)),
        ],
    )


_CLASS_COLUMNS = ("class", "most often taken for", "pictures", "eager", "deployed")


def _lead(document: Document) -> str:
    data, bundle = document["data"], document["bundle"]
    where = f"{data['subset']} of {data['split']}" if data["split"] else f"the folder {data['folder']}"
    random = ", RANDOM weights" if bundle["weights"] == "random" else ""
    return (
        f"{bundle['name']} ({bundle['model']}, {bundle['classes']} classes, {bundle['precision']}{random}) on "
        f"{data['read']} pictures, {where}; {document['engine']['backend']} on {document['engine']['provider']}."
    )


def _sides(document: Document) -> Iterator[tuple[str, ...]]:
    results = document["results"]
    yield ("eager PyTorch", *_shares(results["eager"]))
    yield ("deployed", *_shares(results["deployed"]))


def _branch_rows(document: Document) -> Iterator[tuple[str, ...]]:
    for place, (name, found) in enumerate(document["results"]["branches"].items()):
        test = found["mcnemar_to_zero_shot"]
        against = f"+{test['only_second']} -{test['only_first']}, p = {test['p_value']:.2g}" if place else "-"
        yield (name, *_shares(found), against)


def _shares(found: Document) -> Iterator[str]:
    for top in (1, TOP):
        low, high = found[f"top{top}"]["interval_95"]
        yield f"{found[f'top{top}']['share']:.2%}"
        yield f"{low:.2%} to {high:.2%}"


def _test(document: Document) -> str:
    test, agreement = document["results"]["mcnemar"], document["results"]["agreement"]
    return (
        f"Right on one side only: eager {test['only_first']}, deployed {test['only_second']}; McNemar's exact test "
        f"p = {test['p_value']:.3g}. Same best class on {agreement['top1']:.2%} of the pictures; worst relative logit "
        f"error {agreement['relative_logit_error']['max']:.1e}."
    )


def _worst_first(rows: Sequence[Document]) -> list[Document]:
    return sorted(rows, key=lambda row: (row["deployed"] / row["pictures"], row["label"]))


def _class_row(row: Document) -> tuple[str, ...]:
    mistaken = row["mistaken_for"]
    return (
        row["label"],
        f"{mistaken['label']} ({mistaken['count']})" if mistaken else "-",
        str(row["pictures"]),
        f"{row['eager'] / row['pictures']:.1%}",
        f"{row['deployed'] / row['pictures']:.1%}",
    )


def _plain(text: str) -> str:
    """A name in a Markdown table: a bar would end the cell."""
    return text.replace("|", "\\|").replace("\n", " ")
