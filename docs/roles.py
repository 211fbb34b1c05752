"""Extension of the API reference: Sphinx roles in docstrings, such as :func:`name`, become plain code."""

from __future__ import annotations

import re

import griffe

ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc):`~?([^`]+)`")


class PlainRoles(griffe.Extension):
    """Replaces roles before docstrings are parsed."""

    def on_instance(self, *, obj: griffe.Object, **_) -> None:
        """`obj` is a module, class, function or attribute that was read."""
        if obj.docstring:
            obj.docstring.value = ROLE.sub(r"`\1`", obj.docstring.value)
