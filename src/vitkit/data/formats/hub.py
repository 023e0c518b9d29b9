"""Data sets of the Hugging Face Hub, by the words hf:owner/name@revision:config."""

from __future__ import annotations

import os
import re
import warnings
from typing import Any

from vitkit.data.checks import DataError, first_line, some
from vitkit.data.formats.folders import SPLITS
from vitkit.data.formats.parquet import TableSource
from vitkit.data.source import Source, Splits
from vitkit.errors import UsageError

WORD = re.compile(r"hf:(\w[\w.-]*(?:/\w[\w.-]*)?)(?:@([\w./-]+))?(?::([\w.-]+))?")


def open_hub(word: str) -> Splits:
    """The splits of a data set of the Hub, fetched where they are not cached yet; no code of it
    runs. Raises UsageError, DataError."""
    match = WORD.fullmatch(word)
    if match is None:
        raise UsageError(
            f"{word}: expected hf:owner/name, with @revision and :config after it where needed"
        )
    repository, revision, config = match.groups()
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"{word}: data of the Hub need the extra hub; pip install 'vitkit[hub]'"
        ) from error
    try:
        loaded = datasets.load_dataset(repository, config, revision=revision)
    except Exception as error:  # by network, by name, by content: datasets raises many kinds
        hint = " (name one of its configs after a colon)" if "onfig" in str(error) else ""
        raise DataError(f"{word}: cannot be fetched{hint}: {first_line(error)}") from error
    if not isinstance(loaded, dict):
        raise DataError(f"{word}: came as {type(loaded).__name__}; expected splits of a data set")
    return hub_splits(word, loaded)


def hub_splits(word: str, loaded: dict[Any, Any]) -> Splits:
    """Splits by their names; others than train, validation and test are passed over."""
    known = {name: SPLITS[str(name).lower()] for name in loaded if str(name).lower() in SPLITS}
    if "train" not in known.values() and len(loaded) == 1:
        known = {next(iter(loaded)): "train"}
    others = [str(name) for name in loaded if name not in known]
    if others and known:
        warnings.warn(f"{word}: the splits {some(others)} are passed over", stacklevel=2)
    found: dict[str, Source] = {}
    for name, split in known.items():
        try:
            found.setdefault(split, hub_source(word, str(name), loaded[name]))
        except DataError as error:
            if split != "test":
                raise
            warnings.warn(f"the test split is passed over: {error}", stacklevel=2)
    if "train" not in found:
        raise DataError(
            f"{word}: found the splits {some([str(name) for name in loaded])}; expected train"
        )
    return Splits(word, found["train"], found.get("val"), found.get("test"))


def hub_source(word: str, split: str, dataset: Any) -> Source:
    """A split as it lies in the cache: its images stay encoded, its table stays on disk."""
    import datasets
    from datasets import config
    from huggingface_hub.constants import HF_HUB_CACHE

    for column, feature in dataset.features.items():
        if isinstance(feature, datasets.Image):
            dataset = dataset.cast_column(column, datasets.Image(decode=False))
    if dataset._indices is not None:  # chosen rows
        dataset = dataset.flatten_indices()
    table = dataset.data.table.replace_schema_metadata(dataset.features.arrow_schema.metadata)
    caches = (config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH, HF_HUB_CACHE)
    return TableSource(
        [table], [f"{word} {split}"], [split], [os.path.realpath(path) for path in caches]
    )
