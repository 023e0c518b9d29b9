"""`vitkit recipes`: what recipes there are, what each says, costs and reaches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitkit.errors import UsageError
from vitkit.recipes import find
from vitkit.terminal import print_columns
from vitkit.words import Recipes, parse


def show_recipes(argv: list[str]) -> Any:
    words = parse(Recipes(), "recipes", argv)
    if words.name and words.out:
        raise UsageError("-o writes the page of all recipes; leave NAME out")
    if words.name:
        find(words.name)
    from vitkit.workflows.recipes import described, every, in_lines, write_page

    found = [described(*known) for known in every(words.name or None)]
    if words.out:
        write_page(Path(words.out))
        print(f"wrote {words.out}: {len(found)} recipes")
    elif words.name:
        for row in found:
            print(f"vitkit {row['verb']} DATA --recipe {row['recipe']}\n\n{row['text']}\n")
            if row["choice"]:
                print(f"{row['choice']}\n")
            if row["settings"]:
                print(f"Settings with {row['settings']['model']}:\n{in_lines(row['settings'])}\n")
        print(found[0]["family"])
    else:
        print_columns(
            ("recipe", "verb", "nets", "length", "exaFLOPs", "core-days", "what for"),
            [(row["recipe"], row["verb"], nets(row["nets"]), row["length"] or "as you say",
              *costs(row["costs"]), row["for"]) for row in found],
            right=(4, 5),
        )  # fmt: skip
        print(
            "\nCosts are of the first net (where any will do, ViT-B/16) on the data that a recipe "
            "is for,\nin days of a TPUv3 core at an assumed 40 % of its peak."
        )
    print(f"Next: {following(words, found)}")
    return words, {"recipes": found}


def nets(names: list[str]) -> str:
    return ", ".join(names[:2]) + (", ..." if names[2:] else "") if names else "any"


def costs(rows: list[dict[str, Any]]) -> tuple[str, str]:
    return (rounded(rows[0]["exaflops"]), rounded(rows[0]["core_days"])) if rows else ("", "")


def rounded(value: float) -> str:
    """Three digits, written out."""
    return f"{float(f'{value:.3g}'):,g}"


def following(words: Recipes, found: list[dict[str, Any]]) -> str:
    if not words.name:
        return "vitkit recipes jft-vit-h14"
    if not found[0]["costs"]:
        return f"vitkit pretrain DATA --recipe {words.name}"
    return f'vitkit plan --recipe {words.name} --model "{found[0]["costs"][0]["net"]}" --no-probe'
