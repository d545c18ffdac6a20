"""The leaderboard as one offline HTML page: sortable tables, and F1 per condition as bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from mrg.metrics.conditions import CONVENTIONS, THIRTEEN
from mrg.metrics.constants import BEST
from mrg.metrics.evaluation import format_span
from mrg.metrics.leaderboard import COLUMNS, describe_constant

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:90rem;padding:0 1rem;color:#1b1f24;background:#fff}
table{border-collapse:collapse;margin:1rem 0;font-size:.85rem}td{white-space:nowrap}
th,td{padding:.3rem .4rem;text-align:right;border-bottom:1px solid #d5d9de}
th:first-child,td:first-child{text-align:left}th button{all:unset;cursor:pointer}
th button:focus-visible{outline:2px solid}
th[aria-sort=descending] button::after{content:" \\2193"}th[aria-sort=ascending] button::after{content:" \\2191"}
.wide{overflow-x:auto}small{color:#57606a}
@media print{body{font-size:9pt}.wide{overflow:visible}table{font-size:7pt}th,td{padding:.15rem .25rem}
td{white-space:normal}}
@media screen and (prefers-color-scheme:dark){body{background:#14171b;color:#e6e8ea}
th,td{border-color:#3a4048}small{color:#9aa4ae}}
"""
_SCRIPT = """
for(const th of document.querySelectorAll('th'))th.querySelector('button').onclick=()=>{
const down=th.getAttribute('aria-sort')!=='descending',body=th.closest('table').tBodies[0],i=th.cellIndex;
for(const other of th.parentNode.children)other.removeAttribute('aria-sort');
th.setAttribute('aria-sort',down?'descending':'ascending');
const key=row=>{const v=row.cells[i].dataset.value??row.cells[i].textContent;return isNaN(v)?v:Number(v)};
[...body.rows].sort((a,b)=>{const x=key(a),y=key(b);return(x<y?1:x>y?-1:0)*(down?1:-1)}).forEach(r=>body.append(r))};
"""
_COLOURS = ("#0969da", "#bf3989", "#1a7f37", "#9a6700", "#8250df", "#cf222e", "#57606a", "#0a7ea4")


def write_page(result: Mapping[str, Any], path: Path) -> None:
    """Write the page of a leaderboard."""
    ranking, systems = result["ranking"], result["systems"]
    columns = [ranking["by"], *(name for name in COLUMNS if name != ranking["by"])]
    rows = []
    for name, rank in ranking["systems"].items():
        gap = result["beats"].get(name)
        beats = "" if gap is None else ("yes" if gap["beats"] else "no")
        cells = [(name, None), (f"{rank['rank']} [{rank['low']}-{rank['high']}]", rank["rank"])]
        for column in columns:
            score = systems[name]["scores"][column]
            cells.append((format_span(score), score["value"]))
        distinct = systems[name]["distinct"]
        cells += [(f"{100 * rank['first']:.0f} %", rank["first"]), (f"{100 * distinct:.0f} %", distinct), (beats, None)]
        rows.append(cells)
    if best := result["best_constant"]:
        spans = [(format_span(best["scores"][column]), best["scores"][column]["value"]) for column in columns]
        rows.append([(BEST, None), ("-", None), *spans, *[("-", None)] * 3])
    head = ["system", "rank", *columns, "first", "distinct", f"beats the {result['against']}"]
    every = [
        [(convention, None)]
        + [(f"{100 * systems[n]['scores'][f'CE-F1 {convention}']['value']:.1f}",) * 2 for n in ranking["systems"]]
        for convention in CONVENTIONS
    ]
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>Leaderboard</title><link rel="icon" href="data:,"><style>{_STYLE}</style></head><body><main>
<h1>Leaderboard</h1>
<p>{result["num_studies"]:,} studies, labeler {escape(result["labeler"])}, MCCS margin {result["margin"]:g}, ranked by
{escape(ranking["by"])}. Scores in percent with 95 % bootstrap intervals over studies; <i>first</i> is the share of
bootstrap samples in which no other system is better.</p>
{_wide("Ranking", _table(head, rows))}
<p>Compared with the {escape(describe_constant(result))}</p>
<h2>F1 per condition</h2>
<p>Uncertain counts as positive, in the F1 and in the number of references (in brackets).</p>
{_wide("F1 per condition", _figure(result))}
<h2>CE-F1 in every convention</h2>
{_wide("CE-F1 in every convention", _table(["convention", *ranking["systems"]], every))}
<p><small>13 conditions are those without No Finding. Uncertain counts as positive
where the name of a convention ends in +; 0/0 is 0.</small></p>
</main><script>{_SCRIPT}</script></body></html>
"""
    path.write_text(page, encoding="utf-8")


def _wide(title: str, content: str) -> str:
    """Content that scrolls sideways on a narrow screen, by the keyboard as well."""
    return f'<div class="wide" tabindex="0" role="region" aria-label="{title}">{content}</div>'


def _table(head: Sequence[str], rows: Sequence[Sequence[tuple[str, Any]]]) -> str:
    cells = "".join(f'<th scope="col"><button>{escape(name)}</button></th>' for name in head)
    body = "".join(
        "<tr>"
        + "".join(
            f"<td>{escape(text)}</td>" if value is None else f'<td data-value="{value}">{escape(text)}</td>'
            for text, value in row
        )
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"


def _figure(result: Mapping[str, Any]) -> str:
    """One group of bars per condition, one bar per system, as SVG."""
    names = list(result["ranking"]["systems"])
    bar, left, width = 9, 230, 420
    group = bar * len(names) + 14
    parts = []
    for i, name in enumerate(names):
        y = 12 + 18 * i
        parts.append(f'<rect x="0" y="{y - 9}" width="11" height="11" fill="{_COLOURS[i % len(_COLOURS)]}"/>')
        parts.append(f'<text x="18" y="{y}">{escape(name)}</text>')
    top = 18 * len(names) + 18
    for row, condition in enumerate(THIRTEEN):
        y = top + row * group
        support = result["support"][condition]
        parts.append(f'<text x="0" y="{y + group / 2}">{condition} ({support:,})</text>')
        for i, name in enumerate(names):
            f1 = result["systems"][name]["per_condition"][condition]["f1"]
            title = f"{escape(name)}, {condition}: {100 * f1:.1f}"
            parts.append(
                f'<rect x="{left}" y="{y + i * bar}" width="{max(width * f1, 1):.1f}" height="{bar - 2}" '
                f'fill="{_COLOURS[i % len(_COLOURS)]}"><title>{title}</title></rect>'
            )
    height = top + len(THIRTEEN) * group
    label = "F1 per condition and system, with the number of references that have the condition"
    return (
        f'<svg role="img" aria-label="{label}" width="{left + width + 20}" height="{height}" font-size="13" '
        f'fill="currentColor">{"".join(parts)}</svg>'
    )
