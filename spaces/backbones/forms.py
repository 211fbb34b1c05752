"""Options of a backbone that its weights decide: flags, files and configurations carry them, backbones alone know them.

A form is a yes or no: MobileNetV2 exists with and without a 1×1 expansion in its first stage. Words are those of the
flags, "yes" and "no", and "auto" where weights are still to decide.
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
    """The builder's argument, true unless it is said; also its name as a flag, and in files."""
    tensor: str
    """The backbone's tensor that weights of this form have and others lack."""


_FORMS: dict[str, tuple[Form, ...]] = {}


def _of(backbone: object) -> tuple[Form, ...]:
    # A backbone may also be a class, a module, or whatever a file says.
    return _FORMS.get(backbone, ()) if isinstance(backbone, str) else ()


def register_forms(backbone: str, *forms: Form) -> None:
    """Say in which forms a registered backbone comes."""
    _FORMS[backbone] = forms


def names() -> tuple[str, ...]:
    """The options of all backbones."""
    return tuple(dict.fromkeys(form.option for forms in _FORMS.values() for form in forms))


def has_forms(backbone: object) -> bool:
    """Whether a backbone comes in several forms."""
    return bool(_of(backbone))


def of_weights(state: Mapping[str, Tensor], backbone: object) -> dict[str, str]:
    """The form that weights have, in words, by option; options of other backbones are "yes".

    Args:
        state: of the backbone, or of a whole network that has it under `backbone.`.
        backbone: its name.
    """
    lacking = [
        form.option for form in _of(backbone) if form.tensor not in state and f"backbone.{form.tensor}" not in state
    ]
    return {name: "no" if name in lacking else "yes" for name in names()}


def flags_of(options: Mapping[str, Any]) -> dict[str, bool]:
    """The form that a command line, a configuration or a file says, by option; what is not said is true."""
    said = ((name, options.get(name)) for name in names())
    return {name: True if value is None else value not in ("no", False) for name, value in said}


def words_of(options: Mapping[str, Any]) -> dict[str, str]:
    """The same in words."""
    return {name: "yes" if value else "no" for name, value in flags_of(options).items()}


def arguments(backbone: object, options: Mapping[str, Any]) -> dict[str, bool]:
    """The arguments of a backbone's builder that say its form, where that is not the usual one."""
    said = flags_of(options)
    return {form.option: False for form in _of(backbone) if not said[form.option]}


def resolved(options: Mapping[str, Any], weights: Mapping[str, str] | None) -> dict[str, str]:
    """What becomes of options that are "auto": the form of the weights found, "no" without any."""
    found = dict.fromkeys(names(), "no") if weights is None else weights
    return {name: found[name] for name in names() if options.get(name) == "auto"}
