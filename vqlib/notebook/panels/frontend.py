"""Two things that ipywidgets doesn't have: a picture in which one can choose a cell, and keys that stay in a panel.

Both are a few lines of JavaScript beside this file, which `anywidget` brings into every front end.
"""

from pathlib import Path

try:
    import anywidget
    import ipywidgets as W
    import traitlets
except ImportError as error:
    raise ImportError("the panels need ipywidgets and anywidget: pip install ipywidgets anywidget") from error

try:
    from google.colab import output
except ImportError:
    pass
else:  # Colab asks for this before it shows any widget but ipywidgets' own
    output.enable_custom_widget_manager()

HERE = Path(__file__).parent


class Grid(anywidget.AnyWidget):
    """A picture in equal cells, row by row, one of them marked by mouse or arrow keys: its number is ``index``."""

    _esm = HERE / "grid.js"
    png = traitlets.Bytes(b"").tag(sync=True)
    name = traitlets.Unicode().tag(sync=True)  # what a cell is called
    count = traitlets.Int().tag(sync=True)
    columns = traitlets.Int().tag(sync=True)
    unit = traitlets.Int().tag(sync=True)  # side of a cell, in pixels of the page
    index = traitlets.Int(0).tag(sync=True)


class Keys(anywidget.AnyWidget):
    """Invisible: keeps arrow keys and letters in its panel, so that Jupyter doesn't act on them."""

    _esm = HERE / "keys.js"


def family(widget):
    """A widget and all that belongs to it: children, layouts, styles, and theirs."""
    yield widget
    for name in widget.keys:
        value = getattr(widget, name)
        for child in value if isinstance(value, list | tuple) else [value]:
            if isinstance(child, W.Widget):
                yield from family(child)
