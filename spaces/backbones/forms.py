"""Variants of a backbone that its weights determine, as flags, configurations and files store them.

A form is binary: MobileNetV2 exists with and without a 1×1 expansion in its first stage. Flags spell it "yes" or "no",
or "auto" until weights decide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Form:
    """An option of a backbone's builder that its weights decide."""

    option: str
    """Name of the builder's argument (default: true), of the flag and of the entry in files."""
    tensor: str
    """Name of a tensor of the backbone that only weights of this form have."""


_FORMS: dict[str, tuple[Form, ...]] = {}


def _of(backbone: object) -> tuple[Form, ...]:
    # A backbone may also be a class, a module, or whatever a file says.
    return _FORMS.get(backbone, ()) if isinstance(backbone, str) else ()


def register_forms(backbone: str, *forms: Form) -> None:
    """Declare the forms of a registered backbone."""
    _FORMS[backbone] = forms


def names() -> tuple[str, ...]:
    """The options of all backbones."""
    return tuple(dict.fromkeys(form.option for forms in _FORMS.values() for form in forms))


def has_forms(backbone: object) -> bool:
    """Whether a backbone comes in several forms."""
    return bool(_of(backbone))


def of_weights(state: Mapping[str, Tensor], backbone: object) -> dict[str, str]:
    """Determine the form from weights.

    Args:
        state: state dict of the backbone, or of a network that holds it under ``backbone.``.
        backbone: the backbone's name.

    Returns:
        "yes" or "no" by option; options of other backbones are "yes".
    """
    lacking = [
        form.option for form in _of(backbone) if form.tensor not in state and f"backbone.{form.tensor}" not in state
    ]
    return {name: "no" if name in lacking else "yes" for name in names()}


def flags_of(options: Mapping[str, Any]) -> dict[str, bool]:
    """Read the form from a command line, a configuration or a file as booleans; missing options are true."""
    values = ((name, options.get(name)) for name in names())
    return {name: True if value is None else value not in ("no", False) for name, value in values}


def words_of(options: Mapping[str, Any]) -> dict[str, str]:
    """Read the form as :func:`flags_of`, spelled "yes" or "no"."""
    return {name: "yes" if value else "no" for name, value in flags_of(options).items()}


def arguments(backbone: object, options: Mapping[str, Any]) -> dict[str, bool]:
    """Return the builder's arguments for a form that differs from the default."""
    flags = flags_of(options)
    return {form.option: False for form in _of(backbone) if not flags[form.option]}


def resolved(options: Mapping[str, Any], weights: Mapping[str, str] | None) -> dict[str, str]:
    """Resolve options that are "auto": to the weights' form, or to "no" without weights."""
    form = dict.fromkeys(names(), "no") if weights is None else weights
    return {name: form[name] for name in names() if options.get(name) == "auto"}
