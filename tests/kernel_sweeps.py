"""Sweeps of the native kernels over all sizes at which they change their way, by brute force in float64.

The problems are the package's own (`selfcheck`); here they are put over every count of columns, rows, segments and
channels, every activation, split, addend and sum. `python kernel_sweeps.py` runs them all by the library that the
environment chooses, which is how the sanitizers watch them.
"""

from __future__ import annotations

import itertools
import platform
import sys
from collections.abc import Iterator

import torch

from sparsemask.backends.native import build, library, selfcheck, tiles


def forms() -> list[build.Form]:
    """Every width, compiled for the best instruction set of this processor that has no wider vectors, and for plain."""
    sets = build.instruction_sets(platform.machine())
    try:
        sets = library.supported()
    except (build.NoCompiler, OSError):
        pass  # the tests that ask are skipped
    found = []
    for width in build.WIDTHS:
        narrower = [name for name in sets if build.INSTRUCTION_SETS[name][0] <= width]
        found.append(build.Form(width, narrower[-1]))
    # The widest vectors without the instructions for them: the code of AVX-512 where a processor has no AVX-512.
    older = [name for name in sets if name != "avx512"][-1]
    found.append(build.Form(16, older))
    return list(dict.fromkeys(found))


FORMS = forms()


COLUMNS = range(1, 131)
Problem = tuple[str, float]


def products(variants: int = 4) -> Iterator[Problem]:
    """Every count of columns; what else a product has comes from the variant, of which there are 128."""
    lengths = ((5, 3), (1,), (17, 8, 33), (40, 40, 40), (64, 2, 3, 16, 7))
    for columns in COLUMNS:
        for n in range(variants):
            variant, rows = (columns * variants + n * 37) % 128, (1, 7, 48, 49, 50, 97)[(columns + n) % 6]
            error = selfcheck.product(columns, rows=rows, lengths=lengths[(columns + n) % 5], variant=variant)
            yield f"product columns {columns} rows {rows} variant {variant}", error


def grouped_products() -> Iterator[Problem]:
    """Products that take two or four steps of the depth at a time: every count of columns and rows, all variants."""
    for group, most in ((2, 24), (4, 12)):
        for columns, n in itertools.product(range(1, most + 1), range(6)):
            lengths = tuple(group * k for k in ((1,), (3, 1), (16, 2, 5), (10, 10, 10), (40,), (1, 2, 3, 4))[n])
            variant, rows = (columns * 11 + n * 37) % 128, (1, 7, 47, 48, 49, 97)[(columns + n) % 6]
            error = selfcheck.product(columns, rows=rows, lengths=lengths, variant=variant, group=group)
            yield f"product columns {columns} rows {rows} variant {variant} by {group}", error
        for variant in range(128):
            error = selfcheck.product(most - 3, rows=13, lengths=(2 * group, group), variant=variant, group=group)
            yield f"product variant {variant} by {group}", error
        for rows in range(1, 101):
            yield f"product rows {rows} by {group}", selfcheck.product(most, rows=rows, lengths=(8, 4), group=group)
        error = selfcheck.product(9, rows=5, lengths=(5000, 4), group=group) / 8  # many terms
        yield f"product length 5000 by {group}", error


def squares() -> Iterator[Problem]:
    """Products by squares: every count of columns, all variants, sizes down to one line, none kept and all."""
    lengths = ((5, 3), (1,), (17, 8, 33), (64,))
    for columns in COLUMNS:
        variant, kept = columns * 37 % 128, (0.9, 0.97, 1.0)[columns % 3]
        error = selfcheck.squares(columns, lengths=lengths[columns % 4], kept=kept, variant=variant)
        yield f"squares columns {columns} variant {variant}", error
    for variant, columns in itertools.product(range(128), (5, 24, 57)):
        yield f"squares variant {variant} columns {columns}", selfcheck.squares(columns, variant=variant)
    for height, width, layers in itertools.product((1, 2, 3, 8), (1, 2, 5, 6, 97), (1, 2, 3)):
        error = selfcheck.squares(26, size=(height, width), layers=layers, kept=1.0)
        yield f"squares of {layers} x {height} x {width}", error
    for kept in (0.0, 0.1, 0.5, 1.0):
        yield f"squares kept {kept}", selfcheck.squares(40, size=(31, 33), kept=kept)


def modules() -> Iterator[Problem]:
    """Modules: channels, dense ones of each layer, none kept and all."""
    for channels, kept in itertools.product((1, 4, 7, 16, 24, 33), (0.0, 0.3, 1.0)):
        for layers in range(1, 5):
            dense = tuple((channels * n) // (layers + 1) for n in range(layers))[::-1]
            error = selfcheck.module(channels, dense, size=(1 + channels % 5, 3 + 7 * layers), kept=kept)
            yield f"module of {channels} channels, dense {dense}, kept {kept}", error


def product_shapes() -> Iterator[Problem]:
    """Every count of rows and of segments; segments longer than the kernels' own row of zeros."""
    for rows, columns in itertools.product(range(1, 101), (1, 8, 17, 33, 57, 130)):
        yield f"product rows {rows} columns {columns}", selfcheck.product(columns, rows=rows, variant=rows % 128)
    for segments, columns in itertools.product(range(1, 13), (3, 17, 40, 64, 121)):
        lengths = tuple(1 + (5 * n + columns) % 40 for n in range(segments))
        yield f"product segments {segments} columns {columns}", selfcheck.product(columns, lengths=lengths, variant=2)
    for length in (4095, 4096, 4097, 5000):
        yield f"product length {length}", selfcheck.product(9, rows=5, lengths=(length, 3)) / 8  # many terms


def variants() -> Iterator[Problem]:
    """Every activation, split, addend, bias, sum and target, at counts on either side of a panel."""
    for variant, columns in itertools.product(range(128), (5, 16, 17, 24, 56, 57, 113)):
        yield f"product variant {variant} columns {columns}", selfcheck.product(columns, rows=13, variant=variant)


def small_products() -> Iterator[Problem]:
    """Depth-wise products and inner products."""
    for columns, variant in itertools.product(COLUMNS, range(4)):
        yield f"depth-wise columns {columns}", selfcheck.depthwise(columns, rows=13, variant=variant)
    for columns, length, variant in itertools.product(range(1, 21), (8, 16, 24, 40), range(4)):
        taps, rows = 1 + (columns + variant) % 3, (1, 9, 50)[columns % 3]
        error = selfcheck.narrow(columns, rows=rows, length=length, taps=taps, variant=variant)
        yield f"inner products columns {columns} length {length} variant {variant}", error
    yield "inner products length 4104", selfcheck.narrow(3, length=4104, rows=5) / 8


def tile_products() -> Iterator[Problem]:
    """Products in bfloat16 and int8 by the emulated kinds, and the processor's: sizes, steps, all that is added."""
    lengths = ((5, 40), (1,), (32,), (64, 64, 64), (17, 8, 33), (100, 3, 31, 32, 65))
    for kind in (*tiles.KINDS[1:], *tiles.INT8_KINDS[1:]):
        numbers = tiles.INT8 if kind in tiles.INT8_KINDS else tiles.BFLOAT16
        with tiles.using(kind) as used:
            if used != kind:
                continue
            few = range(1, 131, 7)  # by the emulated tiles, which are slow
            for columns, n in itertools.product(few if kind == "emulated" else COLUMNS, range(2)):
                variant, rows = (columns * 2 + n * 37) % 128, (1, 7, 15, 16, 17, 33, 48, 95, 96, 97, 200)[columns % 11]
                error = selfcheck.tile_product(
                    columns, rows=rows, lengths=lengths[(columns + n) % 6], step=(0, 1, 0, 2)[(columns + n) % 4],
                    variant=variant, kind=numbers,
                )  # fmt: skip
                yield f"{kind} columns {columns} rows {rows} variant {variant}", error
            long = (5000 if numbers == tiles.BFLOAT16 else 300, 3)  # whose sums float32 holds
            yield f"{kind} length {long[0]}", selfcheck.tile_product(9, rows=5, lengths=long, kind=numbers)
    for length in range(1, 131):
        yield f"rows of {length} in int8", selfcheck.rows_in_int8(length, rows=1 + 7 * length % 50)


def points() -> Iterator[Problem]:
    """Point convolutions and their gradients, every count of channels."""
    for columns, n in itertools.product(COLUMNS, range(3)):
        variant, k = (columns * 5 + n * 7) % 16, 1 + (columns + n) % 5
        error = selfcheck.point_rows(columns, rows=20 + n, k=k, variant=variant)
        yield f"points columns {columns} variant {variant}", error
    for columns in COLUMNS:
        yield f"point gradients columns {columns}", selfcheck.point_gradients(columns, rows=9, k=1 + columns % 4)


def volumes() -> Iterator[Problem]:
    """Correlations of every count of groups."""
    for groups, each in itertools.product(range(1, 67), (1, 3)):
        error = selfcheck.correlation(groups, each=each, levels=1 + groups % 9, size=(2, 1 + groups % 7))
        yield f"correlation groups {groups} of {each}", error


def residuals() -> Iterator[Problem]:
    """Inverted residuals: channels, sizes, strides, shares of kept locations, with and without expansion."""
    sizes = ((7, 9), (1, 1), (1, 6), (8, 1), (4, 16), (33, 5))
    for middle, stride in itertools.product((*range(1, 41), 63, 64, 65, 96), (1, 2)):
        for n, kept in enumerate((0.5, 0.0, 1.0, 2.0)):
            expansion = (middle + n) % 3 > 0
            outputs = 6 if (middle + n) % 4 else 1 + middle % 40
            error = selfcheck.inverted(
                middle, stride=stride, outputs=outputs, size=sizes[(middle + n) % 6], kept=kept, batch=1 + n % 2,
                expansion=expansion, variant=middle + n,
            )  # fmt: skip
            yield f"inverted residual middle {middle} stride {stride} kept {kept} expansion {expansion}", error
    yield "inverted residual middle 4112", selfcheck.inverted(4112, channels=2, size=(2, 2), batch=1)


def stages() -> Iterator[Problem]:
    """Decoder stages: columns, dense ones, sizes of features and output, shares of kept locations."""
    shapes = (((5, 7), (3, 4), (1, 1)), ((1, 1), (2, 2)), ((9, 3), (9, 3), (5, 2), (5, 2)), ((4, 8),))
    for columns, n in itertools.product(range(1, 71), range(3)):
        sizes = shapes[(columns + n) % 4]
        size = max(sizes) if (columns + n) % 3 else (11, 6)
        error = selfcheck.fused(
            columns, channels=tuple(1 + (3 * columns + 5 * i) % 40 for i in range(len(sizes))), sizes=sizes, size=size,
            batch=1 + n % 2, kept=(0.5, 0.0, 1.0, 2.0)[(columns + n) % 4], dense=(columns * n) // 2 % (columns + 1),
            variant=n,
        )  # fmt: skip
        yield f"stage columns {columns} size {size} features {sizes}", error


def branches() -> Iterator[Problem]:
    """Mask branches: channels, hidden ones, sizes, strides."""
    sizes = ((7, 9), (1, 1), (2, 5), (12, 4), (3, 110))
    for channels, stride in itertools.product(range(1, 41), (1, 2)):
        hidden, size = 1 + channels % 16, sizes[channels % 5]
        error = selfcheck.mask_branch(channels, stride=stride, hidden=hidden, size=size, variant=channels)
        yield f"mask branch channels {channels} hidden {hidden} stride {stride} size {size}", error
        error = selfcheck.mask_branch(channels, stride=stride, hidden=hidden, size=size, around=True)
        yield f"mask branch of 3x3 convolutions, channels {channels} hidden {hidden} stride {stride} size {size}", error


def lists() -> Iterator[Problem]:
    """Lists of locations of every length."""
    for n in range(1, 80):
        yield f"lists of {n}", selfcheck.lists(n)


SWEEPS = {
    one.__name__: one
    for one in (
        products, squares, grouped_products, product_shapes, variants, small_products, tile_products, points, volumes,
        residuals, stages, branches, modules, lists,
    )
}  # fmt: skip


def wrong(sweep) -> list[Problem]:
    """The problems of a sweep that do not come out right."""
    with torch.no_grad():
        return [(name, error) for name, error in sweep() if not error <= selfcheck.TOLERANCE]


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    bad = [one for sweep in SWEEPS.values() for one in wrong(sweep)]
    print(f"{library.form().name}: {len(bad)} wrong {bad[:3]}")
    sys.exit(bool(bad))
