"""Sections on the origin of a run: its configuration, and how to repeat it."""

from __future__ import annotations

import shlex

from sparsemask.command_lines import again, following
from sparsemask.files import sha256
from sparsemask.options import preset_flags
from sparsemask.report import html
from sparsemask.report.run_data import Contents, number

_UNSAID = "–"


def command_of(c: Contents, verb: str) -> str:
    """The command line of the next verb for this run, as this user types it."""
    folder, config = shlex.quote(str(c.run.folder)), c.config
    if verb == "prune":
        criteria = [f"--run {folder}"]
        if number(config.get("budget_ms")):
            criteria.insert(0, f"--budget_ms {config['budget_ms']:g}")
        elif number(config.get("budget_macs")):
            criteria.insert(0, f"--budget_macs {config['budget_macs'] / 1e6:g}M")
        if c.grouped:
            criteria.insert(0, f"--target {config.get('target') or 0.5:g}")
        elif "front" not in c.info:  # whose masks have no weights
            criteria.insert(0, f"--thres {c.thres:g}")
        return following("prune", " ".join(criteria), config)
    if verb == "retrain":
        return following("retrain", f"--mask_path mask.{'npz' if c.packed else 'npy'}", config, c.run.folder)
    out = f" --out {shlex.quote(str(c.run.folder / 'network.pt2'))}" if verb == "export" else ""
    return following(verb, f"--run {folder}{out}", config)


def configuration(c: Contents) -> str:
    """All flags; those that differ from the preset for this data are marked."""
    name = c.info.get("preset")
    if not isinstance(name, str):  # not recorded by this run
        name = "sample" if c.config.get("sample") is True else "short"
    preset = preset_flags(name, c.verb, str(c.config.get("space")))
    rows, changed = [], 0
    for flag in sorted(c.config):
        value = c.config[flag]
        differs = flag in preset and preset[flag] != value
        changed += differs
        cell = f"<mark>{html.escape(shown(value))}</mark>" if differs else html.escape(shown(value))
        rows.append((html.escape(flag), cell, html.escape(shown(preset[flag])) if flag in preset else ""))
    summary = f"{len(rows)} flags; {changed} differ from the preset “{name}”"
    table = html.table(("flag", "value", html.escape(f"preset {name}")), rows, kind="flags")
    return f"<details><summary>{html.escape(summary)}</summary>{table}</details>"


def shown(value: object) -> str:
    """A flag's value as text; only plain values and flat lists are written out."""
    if value is None:
        return _UNSAID
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return " ".join(str(v) if isinstance(v, (int, float, str)) else "…" for v in value[:50])
    return str(value)[:500] if isinstance(value, (int, float, str)) else f"({type(value).__name__})"


def reproduce(c: Contents) -> str:
    """The commands that make this run again and go on from it, and on what it was computed."""
    config = shlex.quote(str(c.run.config))
    parts = []
    if c.verb in ("search", "retrain", "specialize"):
        parts.append(html.paragraph("The same run again, from its configuration:"))
        parts.append(html.command(again(c.verb, f"--config {config} --name again", c.config)))
        if c.state.startswith("stopped"):
            parts.append(html.paragraph("Going on with it from its last checkpoint:"))
            parts.append(html.command(again(c.verb, f"--resume {shlex.quote(str(c.run.folder))}", c.config)))
    if c.verb == "search":
        parts.append(html.paragraph("And on from here:"))
        parts += [html.command(command_of(c, "prune")), html.command(command_of(c, "retrain"))]
    elif c.verb in ("retrain", "specialize"):
        parts.append(html.paragraph("Its evaluation:"))
        parts.append(html.command(command_of(c, "eval")))
    parts.append(html.paragraph("This page again:"))
    parts.append(html.command(f"sparsemask report {shlex.quote(str(c.run.folder))}"))
    repeat = (
        "With the same versions, number of threads and data, a run repeats bit for bit on a CPU; paths are relative to "
        "the folder it was started in."
    )
    parts.append(html.paragraph(repeat, "note"))
    rows = [(html.escape(name), html.escape(value)) for name, value in _circumstances(c)]
    parts.append(html.table((), rows, kind="plain"))
    return "".join(parts)


def _circumstances(c: Contents) -> list[tuple[str, str]]:
    environment = c.info.get("environment")
    environment = environment if isinstance(environment, dict) else {}
    versions = [
        f"{name} {environment[name]}" for name in ("sparsemask", "python", "torch", "numpy") if name in environment
    ]
    machine = [str(environment[name]) for name in ("processor", "system") if name in environment]
    cores = (
        f"cores: {environment['cores']}, threads of torch: {environment.get('threads', _UNSAID)}"
        if "cores" in environment
        else ""
    )
    rows = [
        ("seed", shown(c.config.get("seed"))),
        ("data", _data(c.config)),
        ("versions", ", ".join(versions) or "not recorded by this run"),
        ("machine", ", ".join([*machine, cores] if cores else machine) or "not recorded by this run"),
        ("device", f"{environment.get('device', _UNSAID)}, {shown(c.config.get('type'))}"),
    ]
    whole, encoder = c.config.get("ft_model"), c.config.get("pretrained_model")
    start, inherits = whole or encoder, c.config.get("inherit") in ("encoder", "all")
    if not start and (c.packed or inherits):
        start = c.config.get("search_checkpoint") or (inherits and c.note.get("checkpoint"))
        whole = c.config.get("inherit") == "all"
    rows.append(("weights" if c.packed or whole else "encoder weights", shown(start or "none: from random weights")))
    if c.mask_file is not None and (c.packed or c.mask is not None):
        rows.append(("mask", f"{c.mask_file.name}, SHA-256 {sha256(c.mask_file)}"))
    mask_path = c.note.get("mask_path") or c.config.get("mask_path")
    if mask_path:
        rows.append(("mask given as", str(mask_path)))
    if c.note.get("checkpoint"):
        digest = f", SHA-256 {c.note['sha256']}" if c.note.get("sha256") else ""
        rows.append(("search checkpoint", f"{c.note['checkpoint']}{digest}"))
    return rows


def _data(config: dict) -> str:
    if config.get("sample") is True:
        return "the embedded sample set"
    names = ("voc_root", "data_root", "im_path", "gt_path", "training_list", "eval_list")
    names += ("hr_path", "dir_data", "data_test", "scale", "train_scans", "eval_scans")
    flags = [f"{name} {config[name]}" for name in names if config.get(name)]
    return ", ".join(flags) or _UNSAID
