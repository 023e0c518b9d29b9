"""What a person reads of a plan: workflows/plan.py makes it."""

from __future__ import annotations

from typing import Any

from vitkit.terminal import print_columns

GIB, MIB = 2**30, 2**20


def lines(found: dict[str, Any]) -> list[str]:
    """The plan for people; the table of memory is printed apart."""
    height, width = found["image_size"]
    compiled = ", blocks compiled" if found["compile"] else ""
    parameters = in_words(found["parameters"], found["trained_parameters"])
    text = [
        f"{found['model']} at {height}x{width}: {parameters}, "
        f"{found['flops_per_image'] / 1e9:.2f} GFLOPs an image",
        f"{found['processes']} process(es) on {found['device']} in {found['precision']}{compiled}, "
        f"{found['images_at_once']} images at once in each",
    ]
    if found["largest_images_at_once"]:
        most = ", ".join(f"{n:,} ({kind})" for kind, n in found["largest_images_at_once"].items())
        text.append(
            f"most images at once in {found['memory_free'] / GIB:.1f} GiB, by checkpointing: {most}"
        )
    if found["steps"] is not None:
        text.append(
            f"{found['steps']:,} steps of {found['batch_size']:,} images: "
            f"{found['images_seen']:,} images, {found['epochs']:.3g} epochs, "
            f"{found['exaflops']:.3g} exaFLOPs"
        )
    if found["seconds"] is not None:
        text.append(
            f"{clock(found['seconds'])}, {found['device_days']:.3g} device-days "
            f"({found['seconds_per_step'] * 1e3:,.0f} ms a step: {found['time_from']}; "
            "evaluation, and images that load more slowly, come on top)"
        )
    elif found["time_from"].startswith("not probed"):
        text.append(found["time_from"])
    if found["what_would_fit"]:
        text.append(f"as it is, it does not fit; {found['what_would_fit']}")
    data = "" if found["disk_data"] is None else f", data {found['disk_data'] / GIB:.2f} GiB"
    text.append(f"disk: states and bundles {found['disk_checkpoints'] / GIB:.2f} GiB{data}")
    return text


def in_words(parameters: int, trained: int) -> str:
    """How many parameters a net has, and how many are trained where that is fewer."""
    text = f"{parameters / 1e6:.2f} M parameters"
    some = f"{trained / 1e6:.2f} M" if trained >= 10_000 else f"{trained:,}"
    return f"{text}, {some} trained" if trained < parameters else text


def clock(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    if seconds < 7200:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"


def print_memory(found: dict[str, Any]) -> None:
    """The planned memory of a process by part, a row for each checkpointing and sharding."""
    parts = ("weights", "gradients", "optimizer", "average", "activations", "saving", "total")

    def fits(row: dict[str, Any]) -> str:
        return "" if row["fits"] is None else "fits" if row["fits"] else "does not fit"

    print_columns(
        ("memory of a process", *parts, ""),
        [
            (f"{row['checkpointing']} checkpointing"
             + (f", {row['sharding']}" if row["sharding"] != "none" else ""),
             *(size(row[part]) for part in parts), fits(row))
            for row in found["memory"]
        ],
        right=tuple(range(1, len(parts) + 1)),
    )  # fmt: skip
    if found["device"] == "cpu":
        print("on top come the libraries, about 1 GiB, and the loaded images, up to 0.3 GiB")


def size(number: int) -> str:
    return f"{number / GIB:.2f} GiB" if number >= GIB else f"{number / MIB:.1f} MiB"
