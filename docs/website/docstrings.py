"""Docstrings as the site shows them: Sphinx's roles become links, and the names of parameters stand out."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod|obj):`~?([\w.]+)`")
LITERAL = re.compile(r"``(.+?)``", flags=re.DOTALL)
LEAD = re.compile(r"(?m)^(Returns|Raises|Needs|Gives)\b")


class Docstrings(griffe.Extension):
    """Rewrites every docstring of a package once the package has been read."""

    def on_object(self, *, obj: griffe.Object, loader: griffe.GriffeLoader, **kwargs: Any) -> None:
        """Called by griffe for each object of the package."""
        if obj.docstring is None:
            return
        text = ROLE.sub(lambda found: _link(found[1], obj), obj.docstring.value)
        for name in _parameters(obj):
            text = re.sub(rf"(?:(?<=^)|(?<=[.;] )|(?<=\n)|(?<=, )){name}(?=(?:, \w+)*:\s)", f"**{name}**", text)
        obj.docstring.value = LEAD.sub(r"**\1**", text)


def _link(name: str, scope: griffe.Object) -> str:
    """A link to the object called ``name`` where ``scope`` is documented; its plain name where the site lacks it."""
    short = name.rpartition(".")[2] if name.startswith("pxfast.") and name.count(".") > 1 else name
    place: griffe.Object | None = scope
    path = name
    while not name.startswith("pxfast") and place is not None:
        if name.partition(".")[0] in place.members:
            path = f"{place.path}.{name}"
            break
        place = place.parent
    return f'<autoref optional identifier="{path}"><code>{short}</code></autoref>'


def _parameters(obj: griffe.Object) -> list[str]:
    """The names that a docstring explains: a function's parameters, or a class's constructor's and its fields."""
    if isinstance(obj, griffe.Function):
        return [parameter.name for parameter in obj.parameters if parameter.name not in ("self", "cls")]
    if isinstance(obj, griffe.Class):
        fields = [name for name, member in obj.members.items() if isinstance(member, griffe.Attribute)]
        return [*{name for name in [*fields, *(each.name for each in obj.parameters)] if name != "self"}]
    return []
