"""Files afar, by any URL that fsspec knows: read in parts, with patience, and nothing guessed.

Every request has a time limit and is made again, later and later, when it fails; how many bytes
came is always checked. What a server says about access is never asked twice.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, TypeVar

from vitkit.data.checks import DataError, first_line, some
from vitkit.data.tars.shards import Shard, is_url, without_secrets
from vitkit.errors import UsageError

RANGE = 8 * 2**20  # bytes fetched at once
TRIES = 5
BACKOFF = 0.5  # seconds before the second try; twice as many before each further one
SILENCE = 30.0  # seconds without a byte after which a try has failed
LARGEST_SMALL = 64 * 2**20  # bytes of lists that lie beside the data
AT_ONCE = 16  # requests

Result = TypeVar("Result")


@lru_cache(maxsize=64)
def filesystem(scheme: str, encoded: bool) -> Any:
    """fsspec's file system for a scheme, with time limits."""
    try:
        import fsspec

        return fsspec.filesystem(scheme, **options(scheme, encoded))
    except ImportError as error:
        raise DataError(
            f"{scheme}:// needs packages that are not installed ({first_line(error)}): "
            "pip install 'vitkit[remote]'"
        ) from error
    except ValueError as error:
        raise UsageError(
            f"{scheme}:// is not known; expected s3://, gs://, https://, http:// or file://"
        ) from error


def options(scheme: str, encoded: bool) -> dict[str, Any]:
    if scheme in ("http", "https"):
        import aiohttp

        limits = aiohttp.ClientTimeout(total=None, sock_connect=SILENCE, sock_read=SILENCE)
        headers = {"Accept-Encoding": "identity"}  # lengths must be those of the file
        return {"client_kwargs": {"timeout": limits, "headers": headers}, "encoded": encoded}
    if scheme == "s3":
        return {"config_kwargs": {"connect_timeout": SILENCE, "read_timeout": SILENCE}}
    if scheme in ("gs", "gcs"):
        return {"requests_timeout": 2 * SILENCE}  # for a whole request
    return {}


def opened(url: str) -> tuple[Any, str]:
    """(file system, path in it) of a URL."""
    scheme = url.partition("://")[0].lower()
    if "::" in url:  # fsspec would chain file systems, and could unpack archives
        raise UsageError(
            f"{without_secrets(url)}: chained URLs are not read; give the plain URL of the file"
        )
    system = filesystem(scheme, "?" in url or "%" in url)
    return system, system._strip_protocol(url)


def tried(url: str, work: Callable[[], Result]) -> Result:
    """What `work` gives, tried TRIES times. FileNotFoundError where nothing is there; DataError."""
    for attempt in range(1, TRIES + 1):
        try:
            return work()
        except DataError:
            raise
        except Exception as error:  # each library raises kinds of its own
            if absent(error):
                raise FileNotFoundError(without_secrets(url)) from None
            if forbidden(error) or attempt == TRIES:
                times = "" if forbidden(error) else f" ({attempt} tries)"
                raise DataError(
                    f"{without_secrets(url)}: cannot be read{times}: {reason(error)}; check the "
                    "address, the network and what you may read there"
                ) from None  # the cause may hold a password
            time.sleep(BACKOFF * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))
    raise AssertionError("unreachable")


def absent(error: Exception) -> bool:
    """Whether there is no such file; for HTTP, fsspec says so of other failures too."""
    cause = error.__cause__
    if cause is not None and not isinstance(cause, FileNotFoundError):
        return status(cause) in (404, 410)
    return isinstance(error, FileNotFoundError) or status(error) in (404, 410)


def forbidden(error: BaseException) -> bool:
    codes = {status(error), status(error.__cause__)}
    return isinstance(error, PermissionError) or bool(codes & {401, 403})


def status(error: BaseException | None) -> int | None:
    return getattr(error, "status", None)


def reason(error: Exception) -> str:
    """A failure in a few words, without what may be a password."""
    cause = error.__cause__ if isinstance(error, FileNotFoundError) else None
    error = cause if isinstance(cause, Exception) else error
    code = status(error)
    words = f"status {code}" if code else without_secrets(first_line(error))
    return f"{type(error).__name__}: {words}"[:200]


def read_range(url: str, offset: int, size: int) -> bytes:
    """A part of a file afar. Raises FileNotFoundError, and DataError when all tries have failed."""
    system, path = opened(url)

    def read() -> bytes:
        data = system.cat_file(path, start=offset, end=offset + size)
        if len(data) != size:
            raise OSError(f"{len(data)} bytes came of {size}")
        return data

    return tried(url, read) if size else b""


def read_whole(url: str) -> bytes:
    """A small file afar, an image or a list. Raises FileNotFoundError, DataError."""
    size = looked_up(url).size
    if size > LARGEST_SMALL:
        raise DataError(
            f"{without_secrets(url)}: {size} bytes, more than the limit of {LARGEST_SMALL}"
        )
    return read_range(url, 0, size)


def small_remote_file(url: str) -> bytes | None:
    """A list that may lie beside the data; None where there is none."""
    try:
        return read_whole(url)
    except FileNotFoundError:
        return None
    except DataError as error:
        # Some servers forbid what is not there.
        if "403" in str(error) or "Permission" in str(error):
            return None
        raise


def looked_up(url: str) -> Shard:
    """A file afar as a shard: its size, and what its server calls this version of it."""
    system, path = opened(url)

    def look() -> dict[str, Any]:
        system.invalidate_cache()
        return system.info(path)

    info = tried(url, look)
    if info.get("size") is None or info.get("type") == "directory":
        raise DataError(
            f"{without_secrets(url)}: its server does not say how long it is; copy it here first"
        )
    known = ("ETag", "etag", "generation", "Last-Modified", "LastModified", "mtime", "updated")
    version = next((str(info[name]) for name in known if info.get(name)), "")
    return Shard(url, int(info["size"]), 0, version)


def remote_shards(urls: Sequence[str]) -> list[Shard]:
    """Shards with what their servers say of them, and their SHA-256 where a list is beside them.

    DataError that counts and names those that are not there.
    """

    def look(url: str) -> Shard | None:
        try:
            return looked_up(url)
        except FileNotFoundError:
            return None

    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = list(pool.map(look, urls))
    missing = [
        without_secrets(url) for url, shard in zip(urls, found, strict=True) if shard is None
    ]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(urls)} shards are not there: {some(missing)}; name only "
            "those that are there"
        )
    hashes = sums_beside(urls)
    return [
        Shard(
            shard.place,
            shard.size,
            0,
            shard.version,
            "",
            hashes.get(without_secrets(shard.place), ""),
        )
        for shard in found
        if shard is not None
    ]


def sums_beside(urls: Iterable[str]) -> dict[str, str]:
    """SHA-256 by URL, from the files SHA256SUMS (as `sha256sum` writes them) beside the files."""
    sums = {}
    for folder in {without_secrets(url).rpartition("/")[0]: url for url in urls}:
        content = small_remote_file(f"{folder}/SHA256SUMS")
        for line in (content or b"").decode(errors="replace").splitlines():
            match = re.fullmatch(r"([0-9a-fA-F]{64}) [ *](?:\./)?(.+)", line.strip())
            if match:
                sums[f"{folder}/{match[2]}"] = match[1].lower()
    return sums


def matching(pattern: str) -> list[str]:
    """The URLs that a pattern with * matches, in order."""
    system, path = opened(pattern)
    return sorted(
        with_scheme(pattern, found) for found in tried(pattern, lambda: system.glob(path))
    )


def files_below(url: str) -> dict[str, int]:
    """Every file below a folder afar, as paths from there, with its size (-1: not said)."""
    system, path = opened(url.rstrip("/") + "/")
    path = path.rstrip("/")
    found = tried(url, lambda: system.find(path, detail=True))
    below = {}
    for name, info in found.items():
        size = info.get("size")
        below[name.removeprefix(path).lstrip("/")] = -1 if size is None else int(size)
    return dict(sorted(below.items()))


def with_scheme(like: str, path: str) -> str:
    return path if is_url(path) else f"{like.partition('://')[0]}://{path}"
