"""How a page looks: one style sheet, for light and dark screens and for paper."""

from __future__ import annotations

from typing import Final

COLOURS: Final = ("#4269d0", "#efb118", "#e8573f", "#3fa796", "#3ca951", "#a463f2", "#f06fa4", "#9c6b4e")
"""For families and lines, told apart by most people who are colour-blind; in this order."""
OTHERS: Final = "#97a0ab"
_TINTS: Final = ("#a9bcee", "#f6d98a", "#f5b3a7", "#9fd6cb", "#9fd9aa", "#d3b7fa", "#f8b9d3", "#cfb5a4", "#cbd0d6")
"""The same, pale enough for dark words on them; the last one is for what has no colour of its own."""
SHADES: Final = ("#e4eefb", "#c3dbf4", "#93c0e8", "#5b9fd6", "#2f7cbf", "#14579c", "#08306b")
"""Of a heat map, from the palest on."""

_SHEET: Final = """
:root { color-scheme: light dark; --page: #fff; --ink: #1b1f24; --faint: #5c6670; --rule: #d9dee3; --soft: #f4f6f8;
  --intact: #9fd0b0; --unproven: #d9d2b8; --good: #1d7a3f; --bad: #b3162b; --warn: #8a5a00; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14181d; --ink: #e6e9ec; --faint: #9aa5b1; --rule: #343c45; --soft: #1d232a;
    --intact: #2f6b4a; --unproven: #5f5a43; --good: #5fce8a; --bad: #ff7a88; --warn: #f0c060; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1040px; padding: 24px 20px 64px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", "Helvetica Neue", "DejaVu Sans", sans-serif; }
h1 { font-size: 22px; margin: 0 0 2px; overflow-wrap: anywhere; }
.tiles ~ h1 { margin-top: 48px; }
h2 { font-size: 17px; margin: 40px 0 4px; overflow-wrap: anywhere; }
p { margin: 4px 0 12px; max-width: 76ch; overflow-wrap: anywhere; } .quiet { color: var(--faint); }
code, td.name bdi { font: 13px ui-monospace, "DejaVu Sans Mono", monospace; }
bdi { unicode-bidi: isolate; }
.tiles { display: flex; flex-wrap: wrap; gap: 10px; margin: 16px 0; padding: 0; list-style: none; }
.tiles li { background: var(--soft); border-radius: 8px; padding: 8px 14px; min-width: 112px; }
.tiles b { display: block; font-size: 19px; font-weight: 600; } .tiles span { color: var(--faint); font-size: 13px; }
.good { color: var(--good); } .bad { color: var(--bad); } .warning { color: var(--warn); }
.figure { overflow-x: auto; margin: 8px 0; }
.figure svg { display: block; width: 100%; min-width: 720px; height: auto; }
.keys { display: flex; flex-wrap: wrap; gap: 4px 16px; font-size: 13px; margin: 6px 0; color: var(--faint); }
.keys i { display: inline-block; width: 11px; height: 11px; margin-right: 6px; border-radius: 2px; }
.table { overflow-x: auto; max-height: 640px; overflow-y: auto; border: 1px solid var(--rule); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-size: 13px; font-variant-numeric: tabular-nums; }
th { position: sticky; top: 0; background: var(--soft); font-weight: 600; text-align: right; }
td { text-align: right; border-top: 1px solid var(--rule); } th, td { padding: 4px 10px; white-space: nowrap; }
td.why { white-space: normal; }
td.name { max-width: 400px; white-space: normal; overflow-wrap: anywhere; min-width: 200px; }
.left { text-align: left; } summary { cursor: pointer; margin: 6px 0; } ul { padding-left: 20px; margin: 4px 0 12px; }
svg text { font: 12px system-ui, "Segoe UI", "Helvetica Neue", "DejaVu Sans", sans-serif; fill: var(--ink);
  unicode-bidi: plaintext; }
svg .small { font-size: 11px; } svg .tiny { font-size: 10px; } svg .faint { fill: var(--faint); }
svg .warn { fill: var(--bad); } svg text.on { fill: #14181d; pointer-events: none; }
svg text.on.faint { fill: #3d4650; }
svg .ink-light { fill: #fff; } svg .ink-dark { fill: #14181d; } svg text.tiny { pointer-events: none; }
.module { fill: var(--soft); stroke: var(--rule); } .grid { stroke: var(--rule); } .axis { stroke: var(--faint); }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; } .lead { fill: none; stroke: var(--rule); }
.dot { stroke: var(--page); stroke-width: 1; } .series:hover .line { stroke-width: 4; } .bar { fill: #4269d0; }
.leaf:hover, .cell:hover, .bar:hover, .chunk:hover { stroke: var(--ink); stroke-width: 2; }
.leaf.broken { stroke: #d62839; stroke-width: 2.5; }
.cell.h0 { fill: var(--soft); } .chunk.intact { fill: var(--intact); } .chunk.unproven { fill: var(--unproven); }
.chunk.damaged { fill: #efb118; } .chunk.lost { fill: #d62839; }
.cross { stroke: #fff; stroke-width: 1.2; pointer-events: none; }
.k-intact { background: var(--intact); } .k-unproven { background: var(--unproven); }
.k-damaged { background: #efb118; } .k-lost { background: #d62839; }
@media print { .table { max-height: none; } }
"""


def style_sheet() -> str:
    """The style sheet of a page."""
    rules = []
    for place, (colour, tint) in enumerate(zip((*COLOURS, OTHERS), _TINTS, strict=True)):
        rules.append(f".c{place} {{ fill: {colour}; }} .s{place} {{ stroke: {colour}; }}")
        rules.append(f".leaf.c{place} {{ fill: {tint}; }} .k{place} {{ background: {tint}; }}")
    rules += [f".h{place} {{ fill: {shade}; }}" for place, shade in enumerate(SHADES, 1)]
    return _SHEET + "\n".join(rules) + "\n"
