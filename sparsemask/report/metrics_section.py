"""Section on the quality of the network, class by class."""

from __future__ import annotations

import numpy as np

from sparsemask.report import html
from sparsemask.report.origin import command_of
from sparsemask.report.run_data import Contents, number
from sparsemask.report.sections import TITLES, figure_of, heat
from sparsemask.tasks.classification.scores import ClassificationScores
from sparsemask.tasks.segmentation.scores import SegmentationScores

_BESIDE = 14  # classes; a larger matrix has the page's width
_READABLE = 40  # classes; a larger matrix is shown as a picture
_ELSEWHERE = ("architecture", "curves", "samples", "weights", "weight_history", "confusion", "front")
_ELSEWHERE += ("kept", "spectra", "tradeoff")


def classes(c: Contents) -> str:
    """The evaluation's metrics, and each class's IoU, recall and share of the pixels."""
    metrics = "; ".join(f"{TITLES.get(k, k.replace('_', ' '))} {v:.4f}" for k, v in c.metrics.items())
    count = number(c.evaluation.get("pictures"))
    unit = "crops" if c.fine else "pictures"
    head = html.paragraph(f"On {count:.0f} validation {unit}: {metrics}." if count else f"While training: {metrics}.")
    head = head if metrics else ""
    rows = _rows(c)
    if rows:
        return head + html.table(*rows, kind="classes")
    if c.verb == "search":
        return ""  # it is not evaluated class by class: what it found is pruned and retrained first
    if c.evaluation:
        return head  # a task without classes
    return head + html.absent(f"Not evaluated yet: {command_of(c, 'eval')}")


def _rows(c: Contents) -> tuple[tuple[str, ...], list] | None:
    if c.confusion is not None and isinstance(c.evaluation.get("accuracy"), dict):
        return _classified(c)
    if c.confusion is not None:
        scores = SegmentationScores(c.confusion)
        truth, guessed, hit = c.confusion.sum(1), c.confusion.sum(0), np.diag(c.confusion)
        total = max(1.0, float(truth.sum()))
        rows = [
            (
                html.escape(name),
                _bar(scores.iou[k]),
                _share(hit[k], truth[k]),
                _share(hit[k], guessed[k]),
                f"{100 * truth[k] / total:.1f}",
            )
            for k, name in enumerate(c.classes)
        ]
        return ("class", "IoU", "recall", "precision", f"% {'points' if c.fine else 'pixels'}"), rows
    iou = c.evaluation.get("iou")
    if isinstance(iou, dict) and iou:
        return ("class", "IoU"), [(html.escape(name), _bar(number(value))) for name, value in iou.items()]
    return None


def _classified(c: Contents) -> tuple[tuple[str, ...], list]:
    """Table of a classification: accuracy, precision, number of images, and the most frequent confusion."""
    scores = ClassificationScores(c.confusion)
    wrong = c.confusion - np.diag(np.diag(c.confusion))
    rows = []
    for k, name in enumerate(c.classes):
        predicted = int(wrong[k].argmax())
        confused_with = f"{c.classes[predicted]} ({wrong[k, predicted]:.0f})" if wrong[k, predicted] else "–"
        precision = _share(c.confusion[k, k], c.confusion[:, k].sum())
        cells = (_bar(scores.recall[k]), precision, f"{c.confusion[k].sum():.0f}", html.escape(confused_with))
        rows.append((html.escape(name), *cells))
    return ("class", "accuracy", "precision", "pictures", "mostly taken for"), rows


def _share(numerator: float, denominator: float) -> str:
    return f"{numerator / denominator:.3f}" if denominator else "–"


def _bar(value: float | None) -> str:
    if value is None or value != value:
        return "–"
    return f'<span class="bar" style="--v:{min(max(value, 0), 1):.3f}">{value:.3f}</span>'


def confusion(c: Contents) -> str:
    """The confusion matrix as a table or as its drawing, and other drawings of an evaluation."""
    parts = []
    file = c.run.pictures / "confusion.png"
    if c.confusion is not None and len(c.classes) <= _READABLE:
        parts.append(_matrix(c))
    elif file.exists():
        parts.append(figure_of(c, file, "Confusion matrix: per cent of each true class", 1000, 500_000))
    elif not c.evaluation and c.verb != "search":
        parts.append(html.absent(f"Not evaluated yet: {command_of(c, 'eval')}"))
    drawings = [p for p in sorted(c.run.pictures.glob("*.png")) if not p.stem.startswith((*_ELSEWHERE, "mask"))]
    parts += [figure_of(c, p, p.stem.replace("_", " "), 800, 200_000) for p in drawings[:4]]
    return "".join(parts)


def _matrix(c: Contents) -> str:
    head = "".join(f'<th scope="col"><span>{html.escape(name)}</span></th>' for name in c.classes)
    rows = []
    for k, name in enumerate(c.classes):
        total = c.confusion[k].sum()
        cells = (
            "".join(_cell(v / total) for v in c.confusion[k])
            if total
            else f'<td class="none" colspan="{len(c.classes)}">does not occur</td>'
        )
        rows.append(f'<tr><th scope="row">{html.escape(name)}</th>{cells}</tr>')
    wide = " wide" if len(c.classes) > _BESIDE else ""
    caption = "Per cent of each true class (rows) by what was predicted (columns); what rounds to 0 is left out"
    return (
        f'<p class="note">{caption}.</p><div class="scroll"><table class="heat confusion{wide}">'
        f'<thead><tr><th scope="col">truth</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def _cell(share: float) -> str:
    return heat(share, f"{100 * share:.0f}") if share >= 0.005 else "<td></td>"
