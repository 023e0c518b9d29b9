"""The colours of pages and figures, each for light and for dark paper.

Figures are drawn in the light ones; in the page's SVG each becomes a CSS variable, so that a figure
follows the reader's scheme. Series are those of Okabe and Ito ("Color Universal Design", 2008),
which colour-blind people tell apart, lighter or darker where the paper needs it.
"""

from __future__ import annotations

COLOURS = {  # name: (light, dark)
    "paper": ("#fffffe", "#15171b"),
    "ink": ("#1f2329", "#e4e6ea"),
    "muted": ("#59616b", "#a3abb6"),
    "line": ("#d7dbe1", "#3a3f47"),
    "tint": ("#f4f5f7", "#1f2227"),
    "series-0": ("#0072b2", "#56b4e9"),
    "series-1": ("#c65102", "#ff9a56"),
    "series-2": ("#00805e", "#2fd3a4"),
    "series-3": ("#a8478a", "#e79ccb"),
    "series-4": ("#8a6d00", "#f0d24a"),
    "series-5": ("#4b4e9b", "#a9adf5"),
}
INK, MUTED, LINE = (COLOURS[name][0] for name in ("ink", "muted", "line"))
SERIES = tuple(light for name, (light, _) in COLOURS.items() if name.startswith("series"))


def css_colours() -> str:
    """The variables, for either scheme; on paper always the light ones."""

    def variables(place: int) -> str:
        return "; ".join(f"--{name}: {pair[place]}" for name, pair in COLOURS.items())

    return (
        f":root {{ color-scheme: light dark; --shade: rgb(128 128 128 / .5); {variables(0)} }}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {variables(1)} }} }}"
    )


def as_variables(style: str) -> str:
    """A style="..." with colours of the light scheme as the page's variables."""
    for name, (light, _) in COLOURS.items():
        style = style.replace(light, f"var(--{name})")
    return style
