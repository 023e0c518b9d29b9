"""Weights brought to this machine: published ones by name, and models of the Hugging Face Hub.

The network is used for what a user has named, and for nothing else.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import IO, NamedTuple
from urllib.parse import urlsplit

from vitkit.checkpoints.problems import CheckpointError
from vitkit.checkpoints.published import PUBLISHED, row_of
from vitkit.errors import UsageError, named
from vitkit.files import whole_file

TIMEOUT = 30  # seconds without a byte
HUB_TIMEOUT = 10  # the same for questions to the Hub, huggingface_hub's own
CHUNK = 1 << 20  # bytes
NETWORK_ERRORS = (
    urllib.error.URLError, TimeoutError, ConnectionError, ssl.SSLError, http.client.HTTPException,
)  # fmt: skip

# What a net of the Hub is made of; of the weights the first that there is.
DESCRIPTIONS = ("config.json", "preprocessor_config.json")
SAFETENSORS, SHARDS = "model.safetensors", "model.safetensors.index.json"
PICKLED = "pytorch_model.bin"
SHARD = re.compile(r"model-\d{5}-of-(\d{5})\.safetensors")
PICKLED_SHARDS = f"{PICKLED}.index.json"
PICKLED_SHARD = re.compile(r"pytorch_model-\d{5}-of-(\d{5})\.bin")

# As the Hub has them: letters, digits, ".", "_" and "-", no "--" and "..", no ".git" at the end.
WORD = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"
REPOSITORY = re.compile(rf"(?!.*(?:--|\.\.|\.git$)){WORD}/{WORD}")
REVISION = re.compile(r"(?!.*\.\.)[A-Za-z0-9_][A-Za-z0-9_./-]*")
# torch.hub's convention for the names of files: a hyphen and the start of their SHA-256.
NAMED_BY_HASH = re.compile(r"-([0-9a-f]{8,64})\.")


class Place(NamedTuple):
    """A revision (branch, tag or commit) of a model repository of the Hub."""

    repository: str  # owner/name
    revision: str

    def __str__(self) -> str:
        at = "" if self.revision == "main" else f"@{self.revision}"
        return f"hf:{self.repository}{at}"


def is_remote(text: str) -> bool:
    """Whether `text` is for `fetch`: "hf:...", a URL, or a published name that is no path here."""
    if text.startswith(("hf:", "https://", "http://")):
        return True
    return text in PUBLISHED and not Path(text).exists()


def fetch(source: str, revision: str | None = None) -> Path:
    """The local file or folder of `source`, downloaded unless it is in a cache.

    `source` is "hf:owner/name", "hf:owner/name@revision" (a branch, tag or commit; or give
    `revision`), "hf:./folder" for a folder of the same layout, a name of PUBLISHED, or the URL of
    one of its rows. From the Hub come config.json, preprocessor_config.json and the weights only;
    the folder with them is returned, or the .npz file where the weights are one. Other downloads
    are kept in VITKIT_CACHE, ~/.cache/vitkit/weights by default.

    Raises UsageError for what cannot be meant, CheckpointError where nothing can be had.
    """
    if source.startswith("hf:"):
        return fetch_from_hub(source.removeprefix("hf:"), revision)
    row = row_of(source)
    if row is None:
        if "://" in source:
            raise UsageError(
                f"{source}: only the files of published weights are fetched (`vitkit models "
                "--published` lists them); download it yourself and give its path"
            )
        named("published weights", source, PUBLISHED)
    assert row is not None
    if row.where.startswith("hf:"):
        return fetch_from_hub(row.where.removeprefix("hf:"), revision)
    if revision is not None:
        raise UsageError(f"{source} is a file that has no revisions; leave revision out")
    return download(row.where)


# The Hugging Face Hub.


def fetch_from_hub(text: str, revision: str | None) -> Path:
    folder = Path(os.path.expanduser(text))
    if text and os.path.isdir(folder):  # which, other than Path.is_dir, is False for any nonsense
        if revision is not None:
            raise UsageError(f"hf:{text} is a folder, which has no revisions; leave revision out")
        return whole_weights(folder) or folder
    if text.startswith((".", "/", "~")):
        raise CheckpointError(f"{folder}: no such folder")
    place = parse(text, revision)
    hub = library(place)
    try:
        info = hub.HfApi().model_info(
            place.repository, revision=place.revision, timeout=HUB_TIMEOUT
        )
        names = [file.rfilename for file in info.siblings or ()]
        wanted = [*(name for name in DESCRIPTIONS if name in names), *weights_among(names, place)]
        paths = [  # the weights last: where they are in the cache, all is
            Path(hub.hf_hub_download(place.repository, name, revision=place.revision))
            for name in wanted
        ]
    except CheckpointError:
        raise
    except Exception as error:  # of huggingface_hub and of the HTTP library that it has today
        found = cached_snapshot(place)
        if found is None:
            raise CheckpointError(why_not(place, error)) from error
        return found
    if len({path.parent for path in paths}) > 1:  # a folder of the cache is one commit
        raise CheckpointError(f"{place}: was changed while it was fetched; try again")
    return paths[-1] if paths[-1].suffix == ".npz" else paths[-1].parent


def parse(text: str, revision: str | None) -> Place:
    """ "owner/name" or "owner/name@revision" -> Place; UsageError for anything else."""
    repository, at, inline = text.partition("@")
    if len(repository) > 96 or not REPOSITORY.fullmatch(repository):
        raise UsageError(
            f"hf:{text}: expected hf:owner/name, hf:owner/name@revision or hf:./folder"
        )
    if at and revision not in (None, inline):
        raise UsageError(f"hf:{text} and revision {revision!r} contradict each other; give one")
    chosen = inline if at else "main" if revision is None else revision
    if not REVISION.fullmatch(chosen):
        raise UsageError(f"hf:{repository}: {chosen!r} is no branch, tag or commit")
    return Place(repository, chosen)


def library(place: Place):
    try:
        import huggingface_hub
    except ImportError as error:
        raise UsageError(
            f"{place} needs the library huggingface_hub: pip install 'vitkit[hub]'"
        ) from error
    return huggingface_hub


def weights_among(names: Iterable[str], place: object) -> list[str]:
    """The files of the weights; CheckpointError where none are here, or not all of them."""
    names = set(names)
    if SAFETENSORS in names:
        return [SAFETENSORS]
    if SHARDS in names:
        return [SHARDS, *all_shards(names, SHARD, place)]
    if PICKLED in names:
        return [PICKLED]
    if PICKLED_SHARDS in names:
        return [PICKLED_SHARDS, *all_shards(names, PICKLED_SHARD, place)]
    arrays = sorted(name for name in names if name.endswith(".npz") and "/" not in name)
    if len(arrays) == 1:
        return arrays
    found = ", ".join(arrays or sorted(names)[:4]) or "nothing"
    what = "more than one .npz file" if arrays else f"no {SAFETENSORS}, {PICKLED} or .npz file"
    raise CheckpointError(f"{place}: {what} (there is {found}); download what you mean by hand")


def all_shards(names: set[str], pattern: re.Pattern[str], place: object) -> list[str]:
    shards = {name: int(match[1]) for name in sorted(names) if (match := pattern.fullmatch(name))}
    if not shards or set(shards.values()) != {len(shards)}:
        raise CheckpointError(f"{place}: {len(shards)} shards of weights, which are not all")
    return list(shards)


def whole_weights(folder: Path) -> Path | None:
    """What `fetch` returns for a folder with weights; None where they are not whole."""
    try:
        last = weights_among([path.name for path in folder.iterdir() if path.is_file()], folder)[-1]
    except CheckpointError:
        return None
    return folder / last if last.endswith(".npz") else folder


def cached_snapshot(place: Place) -> Path | None:
    """What huggingface_hub's cache has of `place`, where the weights are whole.

    Its layout: models--owner--name with refs/REVISION, which holds a commit, and
    snapshots/COMMIT/ (huggingface.co/docs/huggingface_hub/guides/manage-cache).
    """
    home = cache_of_hub() / f"models--{place.repository.replace('/', '--')}"
    reference = home / "refs" / place.revision
    commit = reference.read_text().strip() if reference.is_file() else place.revision
    folder = home / "snapshots" / commit
    return whole_weights(folder) if folder.is_dir() else None


def cache_of_hub() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def why_not(place: Place, error: Exception) -> str:
    """One sentence: why a repository cannot be had, and what to do."""
    from huggingface_hub import errors

    page = f"https://huggingface.co/{place.repository}"
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{place}: its owner wants you to accept the terms on {page} first; then log in by "
            "`hf auth login`, or set HF_TOKEN"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{place}: no such revision; {page}/commits has those that there are"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{place}: the Hub has no such public model; look at the name again, or, if it is "
            "private, log in by `hf auth login`"
        )
    if isinstance(error, errors.OfflineModeIsEnabled):
        return (
            f"{place}: not in the cache ({cache_of_hub()}), and HF_HUB_OFFLINE forbids to fetch "
            "it; unset it, or give a folder with the files as hf:./folder"
        )
    return (
        f"{place}: cannot be fetched ({reason(error.__cause__ or error)}), and is not in the cache "
        f"({cache_of_hub()}); look at the network, or give a folder with the files as hf:./folder"
    )


# Files of the publishers' own servers.


def download(url: str) -> Path:
    """The file at `url` in the cache: whole or absent, whatever happens on the way."""
    target = cache_folder().joinpath(urlsplit(url).hostname or "", urlsplit(url).path.lstrip("/"))
    if target.is_file():
        return target
    request = urllib.request.Request(url, headers={"User-Agent": "vitkit"})
    try:
        with (
            whole_file(target) as partial,
            partial.open("wb") as file,
            urllib.request.urlopen(request, timeout=TIMEOUT) as body,
        ):
            receive(body, file, url)
    except urllib.error.HTTPError as error:
        raise CheckpointError(
            f"{url}: the server answers {error.code} {error.reason}; try later, or download the "
            f"file yourself to {target}"
        ) from error
    except NETWORK_ERRORS as error:
        raise CheckpointError(
            f"{url}: cannot be fetched ({reason(error)}); look at the network, or bring the file "
            f"to {target}"
        ) from error
    except OSError as error:
        raise CheckpointError(
            f"{target}: cannot be written ({error.strerror or error}); VITKIT_CACHE names another "
            "folder for downloads"
        ) from error
    return target


def receive(body: http.client.HTTPResponse, file: IO[bytes], url: str) -> None:
    """Copy what comes into `file`; CheckpointError where it is not what was announced."""
    announced = body.length  # Content-Length; None where there is none
    name = url.rpartition("/")[2]
    digest = hashlib.sha256()
    done, shown = 0, 0.0
    while chunk := body.read(CHUNK):
        file.write(chunk)
        digest.update(chunk)
        done += len(chunk)
        if sys.stderr.isatty() and time.monotonic() - shown > 0.2:
            shown = time.monotonic()
            print(f"\r{progress(name, done, announced)}", end="", file=sys.stderr, flush=True)
    if shown:
        print(f"\r{progress(name, done, announced)}", file=sys.stderr)
    if announced is not None and done != announced:
        raise CheckpointError(f"{url}: broke off after {done} of {announced} bytes; try again")
    expected = NAMED_BY_HASH.search(name)
    if expected and not digest.hexdigest().startswith(expected[1]):
        raise CheckpointError(
            f"{url}: the SHA-256 of what came is {digest.hexdigest()[:12]}..., not "
            f"{expected[1]}... as in its name; try again, or tell its publisher"
        )


def progress(name: str, done: int, announced: int | None) -> str:
    of = f" of {announced / 1e6:.0f} MB ({done / announced:.0%})" if announced else " MB"
    return f"{name}: {done / 1e6:.0f}{of}"


def cache_folder() -> Path:
    """Where downloads are kept."""
    return Path(os.environ.get("VITKIT_CACHE") or "~/.cache/vitkit/weights").expanduser()


def reason(error: BaseException) -> str:
    """The first line of what an error says."""
    text = str(getattr(error, "reason", "") or error) or type(error).__name__
    return text.splitlines()[0]
