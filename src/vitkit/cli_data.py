"""`vitkit data VERB ...`: what can be done to data before a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vitkit.errors import UsageError, VitkitError, named
from vitkit.terminal import print_columns, print_json, printable
from vitkit.words import DataCheck, DataDedup, DataIndex, DataSplit, DataStats, parse, require

HELP = """usage: vitkit data VERB DATA... [options] [--json]

  vitkit data check DATA...                  images that cannot be used, are odd or twice; classes
  vitkit data stats DATA...                  mean and std of the channels, sizes, classes
  vitkit data dedup DATA...                  near-duplicates, within splits and across them
  vitkit data split DATA... -o NAME.index    train, val and test anew, duplicates kept together
  vitkit data index DATA... -o NAME.index    a list of all images, which opens at once

DATA is what every verb takes: docs/data.md. `vitkit data VERB --help` tells the options.
"""
NEEDED = "DATA, images as docs/data.md lists them, or 'digits'"


def data(argv: list[str]) -> Any:
    if not argv:
        raise UsageError(f"vitkit data needs a verb: {', '.join(VERBS)}; see vitkit data --help")
    if argv[0] in ("-h", "--help"):
        print(HELP, end="")
        raise SystemExit(0)
    return VERBS[named("verb of data", argv[0], VERBS)](argv[1:])


def check(argv: list[str]) -> Any:
    words = ready(DataCheck(), "check", argv)
    from vitkit.workflows.data import check

    found = check(list(words.data), out=words.out, threads=words.threads)
    rows = [("images", f"{sum(found['images'].values()):,}", of_splits(found["images"]))]
    rows += [(kind, f"{count:,}", first_of(found["bad_images"], kind))
             for kind, count in found["bad"].items()]  # fmt: skip
    rows += [(note, f"{count:,}", shortened(found["examples"].get(note, [])))
             for note, count in found["information"].items()]  # fmt: skip
    rows += [("same file again", f"{found['copies']:,}",
              f"{found['leaks']:,} across splits" if found["leaks"] else "")]  # fmt: skip
    if found["two_labels"]:
        rows.append(("under two labels", f"{found['under_two_labels']:,}",
                     ", ".join(found["two_labels"][0])))  # fmt: skip
    for title, classes in (
        ("empty classes", found["empty_classes"]),
        *((f"classes not in {name}", of) for name, of in found["missing_classes"].items()),
        *((f"classes under 10 in {name}", of) for name, of in found["small_classes"].items()),
    ):
        if classes:
            rows.append((title, f"{len(classes):,}", shortened(classes)))
    print_columns(("found", "number", ""), rows, right=(1,))
    print(f"\n{found['images_per_second']:,.0f} images a second")
    print(printable(f"{found['quarantined']:,} images to leave out in {found['quarantine']}"))
    faults = [*found["bad"], *found["two_labels"], *found["empty_classes"]]
    if words.strict and faults:
        print_json(words, found)
        raise VitkitError(
            f"{found['data']}: {sum(found['bad'].values())} images cannot be used, "
            f"{found['under_two_labels']} are under two labels and {len(found['empty_classes'])} "
            f"classes are empty; {found['out']} names them"
        )
    if found["quarantined"]:
        print(printable(f"Next: vitkit pretrain {' '.join(words.data)} "
                        f"--data.quarantine {found['quarantine']}"))  # fmt: skip
    else:
        print(printable(f"Next: vitkit data dedup {' '.join(words.data)}"))
    return words, found


def stats(argv: list[str]) -> Any:
    words = ready(DataStats(), "stats", argv)
    from vitkit.workflows.data import stats

    found = stats(list(words.data), out=words.out, threads=words.threads)
    rows = [
        ("images", f"{sum(found['images'].values()):,}", of_splits(found["images"])),
        ("mean", " ".join(f"{value:.4f}" for value in found["mean"]), "red, green, blue; 0 to 1"),
        ("std", " ".join(f"{value:.4f}" for value in found["std"]), "over all pixels"),
    ]
    for name in ("shorter_side", "longer_side", "megapixels", "aspect", "bytes"):
        of = found[name]
        rows.append((name.replace("_", " "), f"{of['median']:,g}",
                     f"{of['min']:,g} to {of['max']:,g}"))  # fmt: skip
    for kind, count in (found["formats"] | found["information"]).items():
        rows.append((kind or "no file", f"{count:,}", ""))
    for split, of in found["classes"].items():
        (smallest, least), (largest, most) = of["smallest"], of["largest"]
        rows.append((f"classes in {split}", f"{of['number']:,}",
                     f"{smallest} {least:,} to {largest} {most:,} images"))  # fmt: skip
    if found["unusable"]:
        rows.append(("left out", f"{found['unusable']:,}", "cannot be used; see vitkit data check"))
    print_columns(("", "median or number", ""), rows, right=(1,))
    if words.out is not None:
        print(printable(f"wrote {found['sheet']}"))
    print(printable(f"Next: vitkit data check {' '.join(words.data)}"))
    return words, found


def dedup(argv: list[str]) -> Any:
    words = ready(DataDedup(), "dedup", argv)
    from vitkit.workflows.data_duplicates import dedup

    found = dedup(
        list(words.data), against=words.against, checkpoint=words.checkpoint or None,
        threshold=words.threshold, features_threshold=words.features_threshold, out=words.out,
        device=words.device, threads=words.threads,
    )  # fmt: skip
    images = {**found["images"], **found["against"]}
    rows = [("images", f"{sum(images.values()):,}", of_splits(images))]
    kinds = {"same bytes": "the same file", "look": "alike to look at", "features": "by features"}
    rows += [(kinds[kind], f"{count:,}", "pairs") for kind, count in found["pairs"].items()]
    rows += [(f"leaks {pair}", f"{count:,}", "pairs") for pair, count in found["leaks"].items()]
    if found["small"]:
        rows.append(("too small to look at", f"{found['small']:,}", "compared by bytes alone"))
    if found["unusable"]:
        rows.append(("not compared", f"{found['unusable']:,}",
                     "cannot be used; vitkit data check names them"))  # fmt: skip
    largest = f"of up to {found['largest_group']:,} images" if found["groups"] else ""
    rows.append(("groups", f"{found['groups']:,}", largest))
    print_columns(("found", "number", ""), rows, right=(1,))
    print(printable(f"{found['quarantined']:,} images to leave out in {found['quarantine']}"))
    if found["sheet"]:
        print(printable(f"look at the most doubtful pairs: {found['sheet']}"))
    if found["index"]:
        print(printable(f"Next: vitkit pretrain {found['index']}"))
    else:
        print("Next: none of the images to train on is left; give other DATA")
    return words, found


def split(argv: list[str]) -> Any:
    words = ready(DataSplit(), "split", argv)
    require(words.out, "data split", "-o NAME.index, where to write")
    from vitkit.workflows.data_duplicates import split

    found = split(
        list(words.data), words.out, val=words.val, test=words.test, seed=words.seed,
        groups=words.groups, threads=words.threads,
    )  # fmt: skip
    print(printable(f"wrote {found['out']}: {of_splits(found['images'])}; {found['groups']:,} "
                    "groups of near-duplicates kept together"))  # fmt: skip
    if found["unusable"]:
        print(f"{found['unusable']:,} images cannot be used; vitkit data check names them")
    print(printable(f"Next: vitkit pretrain {found['out']}"))
    return words, found


def index(argv: list[str]) -> Any:
    words = ready(DataIndex(), "index", argv)
    require(words.out, "data index", "-o NAME.index, where to write")
    from vitkit.workflows.data import index

    found = index(list(words.data), words.out, hash=words.hash)
    print(printable(f"wrote {found['out']}: {of_splits(found['images'])}, "
                    f"{found['classes']:,} classes"))  # fmt: skip
    print(printable(f"Next: vitkit pretrain {found['out']}"))
    return words, found


def ready(default: Any, verb: str, argv: list[str]) -> Any:
    """The words of a sub-verb, of which DATA must be given."""
    words = parse(default, f"data {verb}", argv)
    require(words.data, f"data {verb}", NEEDED)
    threads = getattr(words, "threads", None)
    if threads is not None and threads < 1:
        raise UsageError(f"--threads is {threads}; it must be at least 1")
    return words


def of_splits(images: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in images.items())


def first_of(bad: list[dict[str, str]], kind: str) -> str:
    return next((f"{one['image']}: {one['reason']}" for one in bad if one["kind"] == kind), "")


def shortened(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


VERBS: dict[str, Callable[[list[str]], Any]] = {
    "check": check,
    "stats": stats,
    "dedup": dedup,
    "split": split,
    "index": index,
}
