"""From a data set in CoOp's folder layout to what the commands read: class names, shots and a split file.

python -m calipso_bench.accuracy.prepare caltech101 --data DATA --shots 16 --out caltech101

Folders and split files: KaiyangZhou/CoOp, DATASETS.md. Two of the eleven have no split file there:
ImageNet, where the validation pictures are the test set, and FGVC-Aircraft, whose own lists are read.
"""

import dataclasses
import itertools
import json
import random
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import click

from calipso_bench.accuracy.labelled import Entry, split_entries
from calipso_export.files import read_text
from calipso_export.photos import class_key
from calipso_runtime.errors import CalipsoError, UsageError

Subsets: TypeAlias = dict[str, list[Entry]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSet:
    """Where CoOp's layout keeps a data set.

    Attributes:
        folder: below the folder of all data sets.
        images: below `folder`; what the paths in the split file are relative to.
        split: the split file in `folder`; None where CoOp has none.
        templates: the exporter's name of its prompt template.
    """

    folder: str
    images: str
    split: str | None
    templates: str


# Name: folder, its folder of pictures, split file, templates.
_LAYOUT: Mapping[str, tuple[str, str, str | None, str]] = {
    "imagenet": ("imagenet", "images", None, "imagenet-7"),
    "caltech101": ("caltech-101", "101_ObjectCategories", "split_zhou_Caltech101.json", "caltech101"),
    "pets": ("oxford_pets", "images", "split_zhou_OxfordPets.json", "pets"),
    "cars": ("stanford_cars", ".", "split_zhou_StanfordCars.json", "cars"),
    "flowers": ("oxford_flowers", "jpg", "split_zhou_OxfordFlowers.json", "flowers"),
    "food101": ("food-101", "images", "split_zhou_Food101.json", "food101"),
    "fgvc": ("fgvc_aircraft", "images", None, "fgvc"),
    "sun397": ("sun397", "SUN397", "split_zhou_SUN397.json", "sun397"),
    "dtd": ("dtd", "images", "split_zhou_DescribableTextures.json", "dtd"),
    "eurosat": ("eurosat", "2750", "split_zhou_EuroSAT.json", "eurosat"),
    "ucf101": ("ucf101", "UCF-101-midframes", "split_zhou_UCF101.json", "ucf101"),
}
DATASETS: Mapping[str, DataSet] = {
    name: DataSet(folder=folder, images=images, split=split, templates=templates)
    for name, (folder, images, split, templates) in _LAYOUT.items()
}


def prepare(name: str, data: Path, *, shots: int, seed: int, out: Path) -> Path:
    """Write OUT/classes.txt, OUT/split.json and OUT/shots/<class>/*, links to the pictures.

    The shots are drawn after the manner of Tip-Adapter's released code: by Python's generator, class by class
    in the order in which the training pictures name them.

    Args:
        name: out of `DATASETS`.
        data: the folder of all data sets.
        shots: pictures per class, 0 for none.
        seed: of the draw.
        out: a new folder.

    Returns:
        The folder with the pictures.

    Raises:
        UsageError: the data set is not there, a class has too few pictures, or OUT exists.
    """
    known = DATASETS[name]
    folder = data / known.folder
    images = folder / known.images
    if not images.is_dir():
        message = f"{images} is not a folder: expected {name} in CoOp's layout, see CoOp's DATASETS.md"
        raise UsageError(message)
    if out.exists():
        message = f"{out} exists: name a new folder with --out, or remove it"
        raise UsageError(message)
    subsets = _read(name, folder, images, known)
    names = _class_names(subsets)
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    (partial / "classes.txt").write_text("".join(f"{each}\n" for each in names.values()), encoding="utf-8")
    _write_split(partial / "split.json", subsets, names)
    if shots:
        _link(_drawn(subsets["train"], names, shots, seed), names, images.resolve(), partial / "shots")
    partial.rename(out)
    return images


def _read(name: str, folder: Path, images: Path, known: DataSet) -> Subsets:
    if known.split is not None:
        return {subset: split_entries(folder / known.split, subset) for subset in ("train", "val", "test")}
    return _imagenet(folder, images) if name == "imagenet" else _fgvc(folder)


def _imagenet(folder: Path, images: Path) -> Subsets:
    """Folders of WordNet numbers, and `classnames.txt` with a name for each. Validation is the test set."""
    names = _distinct(dict(_pairs(folder / "classnames.txt")))
    found: Subsets = {"train": [], "test": []}
    for subset, part in (("train", "train"), ("test", "val")):
        for number, name in sorted(names.items()):
            own = images / part / number
            if not own.is_dir():
                message = f"{own} is not a folder: expected the pictures of {name!r}, one folder for each class"
                raise UsageError(message)
            pictures = sorted(each.name for each in own.iterdir() if not each.name.startswith("."))
            found[subset] += [Entry(name=f"{part}/{number}/{each}", class_name=name) for each in pictures]
    return found


def _fgvc(folder: Path) -> Subsets:
    """The data set's own lists: a picture's number, then its variant."""
    return {
        subset: [
            Entry(name=f"{number}.jpg", class_name=variant)
            for number, variant in _pairs(folder / f"images_variant_{subset}.txt")
        ]
        for subset in ("train", "val", "test")
    }


def _pairs(path: Path) -> list[tuple[str, str]]:
    """What stands in each line before and after its first space."""
    found = []
    for line in filter(None, map(str.strip, read_text(path).splitlines())):
        first, _, rest = line.partition(" ")
        if not rest:
            message = f"{path} has the line {line!r}: expected a number, a space and a name"
            raise UsageError(message)
        found.append((first, rest))
    return found


def _distinct(names: Mapping[str, str]) -> dict[str, str]:
    """Two of ImageNet's names stand for two classes each: the second gets its number, so that both can be told."""
    seen: set[str] = set()
    found = {}
    for number, name in names.items():
        found[number] = name if class_key(name) not in seen else f"{name} ({number})"
        seen.add(class_key(name))
    return found


def _class_names(subsets: Subsets) -> dict[str, str]:
    """What the classes are called in the prompts, by key, in the order in which the lists name them."""
    entries = itertools.chain.from_iterable(subsets.values())
    return {class_key(entry.class_name): entry.class_name.replace("_", " ") for entry in entries}


def _write_split(path: Path, subsets: Subsets, names: Mapping[str, str]) -> None:
    place = {key: index for index, key in enumerate(names)}
    document = {
        subset: [[each.name, place[class_key(each.class_name)], names[class_key(each.class_name)]] for each in entries]
        for subset, entries in subsets.items()
    }
    path.write_text(json.dumps(document) + "\n", encoding="utf-8")


def _drawn(entries: Sequence[Entry], names: Mapping[str, str], shots: int, seed: int) -> dict[str, list[Entry]]:
    by_class: dict[str, list[Entry]] = {}
    for entry in entries:
        by_class.setdefault(class_key(entry.class_name), []).append(entry)
    few = [name for key, name in names.items() if len(by_class.get(key, ())) < shots]
    if few:
        message = f"--shots is {shots}, and there are fewer training pictures of {', '.join(few)}"
        raise UsageError(message)
    generator = random.Random(seed)  # noqa: S311 - a draw of pictures, no secret
    return {key: generator.sample(own, shots) for key, own in by_class.items()}


def _link(drawn: Mapping[str, Sequence[Entry]], names: Mapping[str, str], images: Path, out: Path) -> None:
    for key, entries in drawn.items():
        # A slash in a class's name is no folder in a folder.
        folder = out / names[key].replace("/", " ")
        folder.mkdir(parents=True)
        for place, entry in enumerate(entries):
            (folder / f"{place:03d}{Path(entry.name).suffix}").symlink_to(images / entry.name)


@click.command()
@click.argument("name", type=click.Choice(list(DATASETS)))
@click.option("--data", type=click.Path(path_type=Path), required=True, help="The folder of all data sets.")
@click.option("--shots", type=click.IntRange(0), default=16, show_default=True, help="Pictures per class; 0 for none.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the draw.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A new folder.")
def main(name: str, data: Path, shots: int, seed: int, out: Path) -> None:
    """Write class names, a split file and links to the shots of one of the papers' data sets."""
    try:
        images = prepare(name, data, shots=shots, seed=seed, out=out)
    except CalipsoError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    click.echo(f"wrote {out}. Next, with a model and weights of your choice:")
    with_shots = ["--shots", str(out / "shots")] if shots else []
    bundle = f"{out}.calipso"
    export = ["--classes", str(out / "classes.txt"), "--templates", DATASETS[name].templates, *with_shots, "-o", bundle]
    measure = [bundle, "--accuracy", "--data", str(images), "--split", str(out / "split.json")]
    click.echo(f"  calipso export --model RN50-quickgelu --pretrained openai {shlex.join(export)}")
    click.echo(f"  calipso bench {shlex.join(measure)}")


if __name__ == "__main__":
    main()
