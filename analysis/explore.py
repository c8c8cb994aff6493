"""The part of the report to explore: every head's score at a step of training, and one head's trajectory.

Vega-Lite draws it, through altair; its code is inlined, so the page makes no request.
"""

import functools
import json
import math
from typing import Any

import altair as alt
import numpy as np
import vl_convert
from sih.analysis import style

from sih.checkpoints.schedule import readable_tokens
from sih.emergence.telling import telling
from sih.emergence.time_axis import TimeAxis, axis_of
from sih.results.trajectories import Trajectories

STEPS = 64  # at most so many checkpoints, over log time and around the onsets: the page stays below 5 MB
WIDTH = 330


def chart(data: Trajectories, emergence: dict[str, Any]) -> str:
    """The chart as HTML to put into a page; empty without a head score."""
    steps, axis = telling(emergence, STEPS), axis_of(emergence)
    rows = _rows(data, steps, axis)
    tops: dict[str, float] = {}  # scores that have a value, and their largest
    for row in rows:
        for value in (v for v in row["v"] if v is not None):
            tops[row["score"]] = max(value, tops.get(row["score"], value))
    rows, names = [row for row in rows if row["score"] in tops], list(tops)
    if not rows:
        return ""
    layers, heads = _shape(data)
    place = alt.param(
        name="place", value=len(steps) - 1,
        bind=alt.binding_range(min=0, max=len(steps) - 1, step=1, name="checkpoint (first to last) "),
    )  # fmt: skip
    score = alt.param(name="shown", value=names[0], bind=alt.binding_select(options=names, name="score "))
    head = alt.param(
        name="clicked", value=_first(emergence, names[0], heads),
        bind=alt.binding_range(min=0, max=layers * heads - 1, step=1, name="head (or click one) "),
    )  # fmt: skip
    base = alt.Chart(alt.NamedData(name="scores")).transform_filter("datum.score == shown")
    map_ = _map(base, layers, heads, [axis.moment(step) for step in steps], tops)
    line = _line(base, emergence, steps, heads, axis)
    both = (
        alt.hconcat(map_, line, spacing=40)
        .add_params(place, score, head)
        .configure_view(stroke=None)
        .configure_axis(labelFontSize=11, titleFontSize=12)
        .resolve_scale(color="independent")
    )
    return _html(both.to_dict() | {"datasets": {"scores": rows}})


def _rows(data: Trajectories, steps: list[int], axis: TimeAxis) -> list[dict[str, Any]]:
    """For each score and step, the values of all heads, with nulls and counts where the score has them."""
    at = [list(data.steps).index(step) for step in steps]
    found = []
    for sums in data.head_sums.values():
        spec = sums.spec
        if not (spec.headline and spec.nulls and spec.heads_of is None):
            continue
        value_HC = sums.value_HC(False)[:, at]
        null_HC = value_HC - sums.excess_HC(False)[:, at]
        count_HC = sums.total_HC(spec.count, False)[:, at]
        for c, step in enumerate(steps):
            found.append(_row(spec.label, c, step, axis, value_HC[:, c], null_HC[:, c], count_HC[:, c]))
    maps = [m for m in data.maps if m.picture and m.over is None and data.has(m.table)]
    for m, value_CH in zip(maps, data.head_maps(maps, steps).values(), strict=True):
        found += [_row(m.label, c, step, axis, value_CH[c], None, None) for c, step in enumerate(steps)]
    return found


def _row(
    label: str,
    place: int,
    step: int,
    axis: TimeAxis,
    value_H: np.ndarray,
    null_H: np.ndarray | None,
    count_H: np.ndarray | None,
) -> dict[str, Any]:
    row: dict[str, Any] = {"score": label, "place": place, "at": axis.moment(step), "x": round(math.log2(step + 1), 3)}
    row["v"] = _short(value_H)
    if null_H is not None and count_H is not None:
        row |= {"o": _short(null_H), "k": [int(n) for n in count_H]}
    return row


def _short(values: np.ndarray) -> list[float | None]:
    """Three digits after the point; None where there is no value."""
    return [round(float(v), 3) if math.isfinite(v) else None for v in values]


def _shape(data: Trajectories) -> tuple[int, int]:
    return data.shape(next(data.tables[m.table] for m in data.maps if data.has(m.table)))


def _first(emergence: dict[str, Any], label: str, heads: int) -> int:
    """The number of the head to begin with: the first that the series was chosen for."""
    for row in emergence["series"]:
        if row["label"] == label and row["heads"]:
            layer, number = map(int, row["heads"][0][1:].split("H"))
            return layer * heads + number
    return 0


def _map(base: alt.Chart, layers: int, heads: int, moments: list[str], tops: dict[str, float]) -> alt.LayerChart:
    """All heads at the slider's checkpoint."""
    of_heads = (
        base.transform_calculate(n=f"sequence({layers * heads})")
        .transform_calculate(o="isValid(datum.o) ? datum.o : datum.v", k="isValid(datum.k) ? datum.k : datum.v")
        .transform_filter("datum.place == place")
        .transform_flatten(["n", "v", "o", "k"])
        .transform_calculate(
            layer=f"floor(datum.n / {heads})", number=f"datum.n % {heads}",
            name="'L' + datum.layer + 'H' + datum.number",
        )
    )  # fmt: skip
    top = alt.ExprRef(f"{json.dumps(tops)}[shown]")  # the same at all checkpoints
    scale = alt.Scale(scheme="viridis", domainMin=0, domainMax=top)
    square = of_heads.mark_rect(cursor="pointer").encode(
        x=alt.X("number:O", title="head", axis=alt.Axis(labelAngle=0, labelOverlap=True, ticks=False)),
        y=alt.Y("layer:O", title="layer", sort="descending", axis=alt.Axis(labelOverlap=True, ticks=False)),
        color=alt.condition(
            "isValid(datum.v)", alt.Color("v:Q", title=None, scale=scale), alt.value("#dddddd")
        ),
        tooltip=[
            alt.Tooltip("name:N", title="head"), alt.Tooltip("v:Q", title="value"),
            alt.Tooltip("o:Q", title="largest null (the value, if it has none)"),
            alt.Tooltip("k:Q", title="events (the value, if none are counted)"),
            alt.Tooltip("at:N", title="checkpoint"),
        ],
    )  # fmt: skip
    ring = (
        of_heads.transform_filter("datum.n == clicked")
        .mark_rect(fillOpacity=0, stroke="#d55e00", strokeWidth=2.5)
        .encode(x="number:O", y=alt.Y("layer:O", sort="descending"))
    )
    height = min(520, max(120, round(WIDTH * layers / heads)))
    return alt.layer(square, ring).properties(
        width=WIDTH,
        height=height,
        title=alt.Title(alt.expr(f"shown + ', ' + {json.dumps(moments)}[place]")),
    )


def _ticks(axis: TimeAxis, last: int) -> dict[float, str]:
    """Places on log2(step + 1) up to the last step, and what stands there: round numbers of steps, or of tokens."""
    size = axis.tokens_per_step
    if size is None:
        return {math.log2(s + 1): style.short(s) for s in (0, 4, 16, 64, 256, 1000, 4000, 16000, 64000) if s <= last}
    places = {math.log2(t / size + 1): readable_tokens(t) for t in (0, *(10**k for k in range(2, 15)))}
    return {x: said for x, said in places.items() if x == 0 or 1 <= x <= math.log2(last + 1)}


def _line(base: alt.Chart, emergence: dict[str, Any], steps: list[int], heads: int, axis: TimeAxis) -> alt.LayerChart:
    """The chosen head over training, its largest null, and the headline onsets."""
    one = base.transform_calculate(value="datum.v[clicked]", null="isValid(datum.o) ? datum.o[clicked] : null")
    ticks = _ticks(axis, steps[-1])
    x = alt.X("x:Q", title=f"{axis.words} (log scale)", axis=alt.Axis(
        values=list(ticks), labelExpr=f"{json.dumps({f'{x:.2f}': said for x, said in ticks.items()})}"
        "[format(datum.value, '.2f')]", grid=False))  # fmt: skip
    values = one.mark_line(point=True, color="#0072b2").encode(
        x=x,
        y=alt.Y("value:Q", title="value (dashed: largest null)"),
        tooltip=[alt.Tooltip("at:N", title="checkpoint"), "value:Q", "null:Q"],
    )
    nulls = one.mark_line(strokeDash=[5, 3], color="#888888").encode(x="x:Q", y="null:Q")
    now = one.transform_filter("datum.place == place").mark_rule(color="#d55e00", strokeWidth=1.5).encode(x="x:Q")
    shown = [
        {"x": r["t50_log2"], "onset": r["label"], "at": axis.moment(r["t50_step"]), "kind": r["kind"]}
        for r in emergence["series"]
        if r["series"] in emergence["headline"] and r["emerged"]
    ]
    onsets = (
        alt.Chart(alt.Data(values=shown))
        .mark_rule(color="#e69f00", strokeWidth=2, opacity=0.8)
        .encode(x="x:Q", tooltip=["onset:N", alt.Tooltip("at:N", title="half-rise")])
    )
    title = alt.expr(
        f"'L' + floor(clicked / {heads}) + 'H' + (clicked % {heads}) + ' over training; yellow: headline onsets'"
    )
    parts = [onsets, nulls, values, now] if shown else [nulls, values, now]
    return alt.layer(*parts).properties(width=WIDTH, height=260, title=alt.Title(title))


@functools.cache
def _code() -> str:
    """Vega's code, and the chart's, which writes the clicked head into the parameter that the slider sets too."""
    code = vl_convert.javascript_bundle(
        "const spec = JSON.parse(document.getElementById('explore-spec').textContent);"
        "vegaEmbed('#explore', spec, {actions: false, renderer: 'svg'}).then(({view}) => {"
        "view.addEventListener('click', (_, item) => {"
        "if (item && item.datum && item.datum.n !== undefined) view.signal('clicked', item.datum.n).runAsync()});"
        "}).catch(error => console.error(error));"
    )
    for tag in ("script", "head"):  # in strings of the code
        code = code.replace(f"</{tag}", f"<\\/{tag}")
    return code


def _html(spec: dict[str, Any]) -> str:
    data = json.dumps(spec, separators=(",", ":")).replace("</", "<\\/")
    return (
        '<div id="explore"></div>\n'
        f'<script type="application/json" id="explore-spec">{data}</script>\n<script type="module">{_code()}</script>'
    )
