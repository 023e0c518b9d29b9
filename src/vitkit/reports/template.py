"""How a page looks: its style, and the one Jinja template of all pages (vitkit.reports.page)."""

CSS = """
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 0 auto;
       padding: 1rem 1rem 4rem; color: var(--ink); background: var(--paper);
       overflow-wrap: anywhere }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 1rem 0 .5rem }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem; padding-top: .75rem;
     border-top: 1px solid var(--line) }
h3 { font-size: 1.05rem; margin: 1.75rem 0 .5rem }
p { max-width: 46rem } .quiet, figcaption, caption { color: var(--muted) }
nav ul { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .25rem 1.25rem }
a { color: var(--series-0) }
aside { border-left: 4px solid var(--series-1); background: var(--tint); padding: .5rem 1rem;
        margin: 1rem 0 } aside ul { margin: 0; padding-left: 1rem }
.scroll { margin: 1rem 0; max-width: 100% }
/* A shade at the edge behind which there is more; at the end the paper, which scrolls, hides it. */
.scroll, figure.wide { overflow-x: auto; background:
  linear-gradient(to right, var(--paper) 40%, transparent) left / 2rem 100% no-repeat local,
  linear-gradient(to left, var(--paper) 40%, transparent) right / 2rem 100% no-repeat local,
  linear-gradient(to right, var(--shade), transparent) left / .8rem 100% no-repeat scroll,
  linear-gradient(to left, var(--shade), transparent) right / .8rem 100% no-repeat scroll }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }
caption { text-align: left; padding-bottom: .25rem; font-weight: 600 }
td, th { padding: .25rem 1rem .25rem 0; text-align: left; vertical-align: top;
         border-bottom: 1px solid var(--line); overflow-wrap: normal }
td { max-width: 36rem } th { font-weight: 600 }
td.number, th.number { text-align: right } td.short, .rows th { white-space: nowrap }
.facts td { overflow-wrap: anywhere }
summary { cursor: pointer; color: var(--muted); padding: .25rem 0 }
.figures { display: grid; gap: 2rem;
           grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)) }
figure { margin: 0; min-width: 0 } figure.wide { grid-column: 1 / -1 }
@media screen and (max-width: 36rem) { figure.wide::before {
  content: "scroll sideways for all of it \\2192"; position: sticky; left: 0; font-size: .85rem;
  color: var(--muted) } }
figcaption { font-size: .85rem; line-height: 1.35; margin-top: .25rem }
svg { display: block; width: 100%; height: auto } svg text { font-family: system-ui, sans-serif }
svg * { stroke-linejoin: round; stroke-linecap: butt }
.pictures + .figures, .beside + .figures, .figures + .figures { margin-top: 2rem }
.beside { display: flex; flex-wrap: wrap; gap: 0 2rem; align-items: flex-start }
.beside > .pictures { flex: 1 1 26rem }
.pictures { display: grid; gap: 1.5rem 1rem; margin: 1rem 0;
            grid-template-columns: repeat(auto-fill, minmax(min(45%, 10rem), 1fr)) }
.pictures img { display: block; width: 100%; max-width: 14rem; height: auto;
                image-rendering: auto; border-radius: 4px }
.none { border: 1px dashed var(--line); padding: 2rem .5rem; text-align: center; max-width: 14rem }
@media print { body { max-width: none; font-size: 11px }
               .scroll, figure.wide { overflow: visible; background: none }
               figure, tr { break-inside: avoid } h2, h3 { break-after: avoid }
               nav { display: none } }
"""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{{ title }}</title>
<style>{{ css | safe }}</style></head><body>
{% macro show(parts) %}
{% for part in parts %}
{% if part.kind == "heading" %}
<h3{% if part.anchor %} id="{{ part.anchor }}"{% endif %}>{{ part.text }}</h3>
{% elif part.kind == "links" %}
<nav aria-label="{{ part.label }}"><ul>
{% for anchor, text in part.texts.items() %}
<li><a href="#{{ anchor }}">{{ text }}</a></li>
{% endfor %}
</ul></nav>
{% elif part.kind == "beside" %}
<div class="beside">
{{ show(part.parts) }}
</div>
{% elif part.kind == "text" %}
<p>{{ part.text }}</p>
{% elif part.kind == "notes" %}
<aside><ul>{% for sentence in part.sentences %}<li>{{ sentence }}</li>{% endfor %}</ul></aside>
{% elif part.kind == "facts" %}
<div class="scroll" tabindex="0"><table class="facts">
{% if part.title %}<caption>{{ part.title }}</caption>{% endif %}
{% for name, value in part.rows.items() %}
<tr><th>{{ name }}</th><td>{{ value }}</td></tr>
{% endfor %}
</table></div>
{% elif part.kind == "rows" %}
{% set numbers = part.numbers() %}
<div class="scroll" tabindex="0"><table class="rows">
{% if part.title %}<caption>{{ part.title }}</caption>{% endif %}
<tr>{% for name in part.header %}<th{{ number(numbers[loop.index0]) }}>{{ name }}</th>{% endfor %}
</tr>
{% for row in part.rows %}
<tr>{% for cell in row %}<td{{ number(numbers[loop.index0], cell) }}>{{ cell }}</td>
{% endfor %}</tr>
{% endfor %}
</table></div>
{% if part.note %}<p class="quiet">{{ part.note }}</p>{% endif %}
{% elif part.kind == "drawings" %}
<div class="figures">
{% for figure in part.figures %}
{% set markup = svg(figure) %}
{% if markup %}
<figure{% if figure.wide %} class="wide" tabindex="0"{% endif %}>{{ markup | safe }}
{% if figure.caption %}<figcaption>{{ figure.caption }}</figcaption>{% endif %}</figure>
{% endif %}
{% endfor %}
</div>
{% elif part.kind == "pictures" %}
<div class="pictures">
{% for picture in part.pictures %}
<figure>
{% set uri = picture.uri(side) %}
{% if uri %}<img src="{{ uri }}" alt="{{ picture.alt }}">
{% else %}<div class="none">no picture</div>{% endif %}
<figcaption>{% for line in picture.lines %}{{ line }}{% if not loop.last %}<br>{% endif %}
{% endfor %}</figcaption></figure>
{% endfor %}
</div>
{% elif part.kind == "fold" %}
<details{% if part.opened %} open{% endif %}><summary>{{ part.summary }}</summary>
{{ show(part.parts) }}
</details>
{% endif %}
{% endfor %}
{% endmacro %}
{% macro number(yes, cell="") %}
{%- if yes %} class="number"{% elif cell and cell | length <= 32 %} class="short"{% endif %}
{%- endmacro %}
<header><h1>{{ title }}</h1>
<p>{{ summary }}</p>
{% if note %}<aside>{{ note }}</aside>{% endif %}
</header>
{% if contents %}
<nav aria-label="Contents"><ul>
{% for place, section in sections %}
<li><a href="#part-{{ place }}">{{ section.title }}</a></li>
{% endfor %}
</ul></nav>
{% endif %}
<main>
{% for place, section in sections %}
<section><h2 id="part-{{ place }}">{{ section.title }}</h2>
{{ show(section.parts) }}
</section>
{% endfor %}
</main>
</body></html>
"""
