"""Names beside points: each moves to the nearest place where it covers no other name, mark or edge."""
from __future__ import annotations

import warnings

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

NAME = "name"
"""The ``gid`` of an annotation that may be moved."""
AROUND = ((1, 0), (-1, 0), (0, 1), (0, -1), (.8, .7), (.8, -.7), (-.8, .7), (-.8, -.7), (.4, 1), (.4, -1),
          (-.4, 1), (-.4, -1))
PLACES = [(r * x, r * y) for r in (8, 13, 20, 29, 40, 54) for x, y in AROUND]
"""Where a name may stand from its point, in points of type; near ones first."""
NEAR = 14
"""Points of type up to which it is clear whose name it is; further away a line leads there."""
MARK = 5
"""Half the width of a mark, in points of type."""


def spread(figure: Figure) -> None:
    """Place the names of all plots of a figure, and keep its layout as it then is; nothing else moves."""
    movable = {axes: [t for t in axes.texts if isinstance(t, Annotation) and t.get_gid() == NAME]
               for axes in figure.axes}
    engine = figure.get_layout_engine()
    if engine is None or not any(movable.values()):
        return
    renderer = FigureCanvasAgg(figure).get_renderer()
    for note in (n for notes in movable.values() for n in notes):
        note.set_in_layout(False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")        # a name may be in letters that the font lacks
        engine.execute(figure)
        figure.set_layout_engine("none")
        for axes, notes in movable.items():
            marks, names = _marks(axes, figure.dpi / 72), list[Bbox]()
            for note in sorted(notes, key=lambda n: -float(n.xy[1])):
                size = note.get_window_extent(renderer)
                names.append(_place(axes, note, marks, names, size, figure.dpi / 72))


def _marks(axes: Axes, scale: float) -> list[Bbox]:
    """The boxes of all marks, of upright bars and of the steps of a staircase, in pixels."""
    boxes = []
    for line in axes.lines:
        ends = axes.transData.transform(line.get_path().vertices)
        room = scale * (MARK if line.get_marker() != "None" else 1.5)
        for one, other in zip(ends, ends[1:] if len(ends) > 1 else ends, strict=False):
            boxes.append(Bbox([np.minimum(one, other) - room, np.maximum(one, other) + room]))
    return boxes


def _place(axes: Axes, note: Annotation, marks: list[Bbox], names: list[Bbox], size: Bbox,
           scale: float) -> Bbox:
    """Move a name of this size to where it covers least, marks rather than names; returns its box."""
    x, y = axes.transData.transform(note.xy)
    inside = axes.get_window_extent()
    best: tuple[float, Bbox, tuple[float, float]] | None = None
    for dx, dy in PLACES:
        left = x + dx * scale - (0.0 if dx > 1 else size.width if dx < -1 else size.width / 2)
        box = Bbox.from_bounds(left, y + dy * scale - size.height / 2, size.width, size.height)
        out = size.width * size.height - _overlap(box, inside)
        covered = sum(_overlap(box, other) for other in marks)
        covered += 20 * sum(_overlap(box, other) for other in names)
        cost = 4 * out + covered + 0.02 * scale**2 * (dx**2 + dy**2)
        if best is None or cost < best[0]:
            best = cost, box, (dx, dy)
    assert best is not None
    _, box, (dx, dy) = best
    note.set_gid(None)                                    # it would become an id, and names are many
    note.set_position((dx, dy))
    note.set_horizontalalignment("left" if dx > 1 else "right" if dx < -1 else "center")
    if dx**2 + dy**2 > NEAR**2:
        near = (min(max(x, box.x0), box.x1), min(max(y, box.y0 + 2), box.y1 - 2))
        end = axes.transData.inverted().transform(near)
        axes.plot(*zip(note.xy, end, strict=True), color=note.get_color(), linewidth=0.6, alpha=0.7,
                  scalex=False, scaley=False)
    return box


def _overlap(a: Bbox, b: Bbox) -> float:
    """Square pixels that two boxes share."""
    width, height = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
    return float(max(0.0, width) * max(0.0, height))
