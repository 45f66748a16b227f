"""From a chart's specification to an SVG that may stand in the middle of a page.

Colours are CSS variables, so one drawing serves light, dark and paper. What a mark says on hover is its ``<title>``,
which needs no script. Ids are made unique, since all drawings share one document.
"""

import re
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree as ET

import vl_convert
from markupsafe import Markup

from potstill.core.errors import BugError

__all__ = ["VEGALITE_VERSION", "draw"]

VEGALITE_VERSION = "6.4"
_SVG = "http://www.w3.org/2000/svg"
_FONT = "system-ui, sans-serif"
_TRANSLATION = re.compile(r"translate\(([-0-9.]+),")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_CONFIG = {
    "background": None,
    "font": _FONT,
    "padding": 2,
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--soft)",
        "labelFontSize": 11,
        "labelLimit": 170,
        "titleColor": "var(--soft)",
        "titleFontWeight": "normal",
        "titleFontSize": 11,
        "gridColor": "var(--rule)",
        "gridWidth": 0.75,
        "domain": False,
        "ticks": False,
        "labelPadding": 6,
    },
    "axisY": {"titleAngle": 0, "titleAlign": "left", "titleAnchor": "end", "titleY": -10, "titleX": 0},
    "text": {"fontSize": 11, "fill": "var(--ink)"},
    "legend": {"disable": True},
}


def draw(
    specification: Mapping[str, Any], *, name: str, alternative: str, columns: tuple[float, float, float]
) -> Markup:
    """Render a Vega-Lite specification to an ``<svg role="img">`` that scales with its box.

    ``name`` tells its ids from those of other drawings on the page; ``alternative`` is read out in its stead.
    ``columns`` are the pixels left of the plot, of the plot, and right of it. They are fixed here and not measured,
    because the reader's fonts are not those of the renderer, and so that drawings side by side are to one scale.
    """
    text = vl_convert.vegalite_to_svg({**specification, "config": _CONFIG}, vl_version=VEGALITE_VERSION)
    ET.register_namespace("", _SVG)
    root = ET.fromstring(text)  # noqa: S314 - written by vl-convert a line above, with no entities
    _make_ids_unique(root, name)
    _move_labels_to_titles(root)
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    width = sum(columns)
    root.set("viewBox", f"{_plot_left(root) - columns[0]:g} 0 {width:g} {root.get('viewBox', '').split()[3]}")
    root.set("style", f"max-width:{width * 1.2:.0f}px")
    root.set("role", "img")
    root.set("aria-label", alternative)
    return Markup(ET.tostring(root, encoding="unicode"))  # noqa: S704 - a serialised tree, its text escaped by it


def _plot_left(root: ET.Element) -> float:
    group = root.find(f"{{{_SVG}}}g")
    match = None if group is None else _TRANSLATION.match(group.get("transform", ""))
    if match is None:
        raise BugError("vl-convert's drawing has no plot where one was expected", where="potstill.report.svg")
    return float(match[1])


def _make_ids_unique(root: ET.Element, name: str) -> None:
    """Number ids anew under this drawing's name: the renderer counts on from one drawing to the next."""
    found = [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
    new = {old: f"{name}-{number}" for number, old in enumerate(found, start=1)}
    for element in root.iter():
        for key, value in list(element.attrib.items()):
            if key == "id":
                element.set(key, new[value])
            elif "url(#" in value:
                element.set(key, _REFERENCE.sub(lambda match: f"url(#{new[match[1]]})", value))


def _move_labels_to_titles(root: ET.Element) -> None:
    """Give each described mark a ``<title>``; drop roles and labels inside, for the drawing is one image."""
    for element in root.iter():
        label = element.attrib.pop("aria-label", None)
        described = element.attrib.pop("aria-roledescription", "") != "axis"
        element.attrib.pop("aria-hidden", None)
        if element.attrib.pop("role", None) == "graphics-symbol" and label and described:
            element.set("class", "tip")
            title = ET.Element(f"{{{_SVG}}}title")
            title.text = label
            element.insert(0, title)
