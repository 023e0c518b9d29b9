"""Images that sources have in common: the same file, byte for byte, or the same pixels."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from vitkit.data.audit import digest_of, usual_threads
from vitkit.data.source import Source
from vitkit.errors import VitkitError

AT_ONCE = 64  # images that a thread reads between two looks at the queue


def in_common(source: Source, others: Sequence[Source]) -> list[dict[int, int]]:
    """For each of the others {index in the source: index there} of the images that it has too.

    Files are compared, and pixels where one of them keeps nothing else. An image that cannot be
    read is like no other. A photograph that was encoded anew is another file: `vitkit data dedup`
    finds those.
    """
    by_pixels = any(len(one) and is_pixels(one) for one in (source, *others))
    own = digests(source, by_pixels)
    found = []
    for other in others:
        known = {digest: index for index, digest in enumerate(digests(other, by_pixels)) if digest}
        found.append({index: known[digest] for index, digest in enumerate(own) if digest in known})
    return found


def is_pixels(source: Source) -> bool:
    try:
        return source.encoded(0) is None
    except (OSError, VitkitError):
        return False


def digests(source: Source, by_pixels: bool) -> list[bytes]:
    """16 bytes for each image, b"" where it cannot be read."""
    starts = range(0, len(source), AT_ONCE)

    def group(first: int) -> list[bytes]:
        last = min(first + AT_ONCE, len(source))
        return [one_digest(source, index, by_pixels) for index in range(first, last)]

    with ThreadPoolExecutor(usual_threads()) as pool:
        return [digest for found in pool.map(group, starts) for digest in found]


def one_digest(source: Source, index: int, by_pixels: bool) -> bytes:
    try:
        data = None if by_pixels else source.encoded(index)
        if data is None:
            image = source.image(index)
            data = str(tuple(image.shape)).encode() + image.contiguous().numpy().tobytes()
        return digest_of(data)
    except (OSError, VitkitError):
        return b""
