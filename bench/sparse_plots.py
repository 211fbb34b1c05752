"""Plots of the sparse bench."""

from __future__ import annotations

from pathlib import Path

from sparsemask.pictures import style


def draw_smsr(rows: list[dict], path: Path, names: list[str]) -> None:
    """Gain in time over the unmasked network, a group a picture, beside the gain in multiply-adds."""
    shown = [n for n in ("public style", *names) if f"gain {n}" in rows[0]]
    with style.drawing():
        figure = style.figure(9, 4.5)
        _bars(figure.add_axes((0.07, 0.13, 0.91, 0.75)), rows, shown)
        style.save(figure, path)


def _bars(axes, rows: list[dict], shown: list[str]) -> None:
    width = 0.8 / len(shown)
    for place, name in enumerate(shown):
        at = [i + (place - (len(shown) - 1) / 2) * width for i in range(len(rows))]
        bars = axes.bar(at, [r[f"gain {name}"] for r in rows], width * 0.92, label=name)
        axes.bar_label(bars, fmt="%.1f", fontsize=7, padding=1)
    for i, row in enumerate(rows):
        axes.plot([i - 0.42, i + 0.42], [row["flop_gain"]] * 2, color="black", lw=1.2, label="" if i else "FLOP gain")
    axes.axhline(1, color="grey", lw=0.8, ls=":")
    axes.set_xticks(range(len(rows)), [f"{r['picture']}\n{r['kept']:.0%} kept" for r in rows])
    axes.set_ylabel("times faster than unmasked")
    axes.set_title("SMSR ×2: time gained by skipping", loc="left", weight="bold")
    axes.legend(frameon=False, ncols=len(shown) + 1, loc="upper right", fontsize=8)
    axes.set_ylim(0, 1.18 * max(max(r["flop_gain"], *(r[f"gain {n}"] for n in shown)) for r in rows))


def draw_efficiency(rows: list[dict], path: Path) -> None:
    """Efficiency over the share kept, a panel a kernel and width."""
    panels = sorted({(r["kernel"], r["channels"]) for r in rows})
    names = [k.removeprefix("efficiency ") for k in rows[0] if k.startswith("efficiency") and k != "efficiency dense"]
    with style.drawing():
        wide = max(5.5, 2.8 * len(panels) + 1.0)
        figure = style.figure(wide, 3.8)
        every = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        figure.subplots_adjust(left=0.7 / wide, right=0.98, bottom=0.15, top=0.84, wspace=0.08)
        for axes, (kernel, channels) in zip(every, panels, strict=True):
            mine = [r for r in rows if (r["kernel"], r["channels"]) == (kernel, channels)]
            for name in names:
                means = {}
                for row in mine:
                    means.setdefault(round(row["kept"], 2), []).append(row[f"efficiency {name}"])
                axes.plot(
                    sorted(means), [sum(v) / len(v) for _, v in sorted(means.items())], marker="o", ms=3, label=name
                )
            axes.axhline(1, color="grey", lw=0.8, ls=":")
            axes.set_title(f"{kernel}×{kernel}, {channels} channels", fontsize=9)
            axes.set_xlabel("share of locations kept")
        every[0].set_ylabel("time gain / FLOP gain")
        every[0].set_ylim(bottom=0)
        every[-1].legend(frameon=False, fontsize=8, loc="lower right")
        figure.suptitle("Efficiency of skipping, mean over sizes and masks", x=0.7 / wide, ha="left", fontsize=10)
        style.save(figure, path)
