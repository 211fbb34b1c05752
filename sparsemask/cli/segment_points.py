"""Segment points: a class for every point of a cloud, by a network that computes only where it must.

    sparsemask segment-points IN.bin OUT.label --weights FILE      a LiDAR scan, raw SemanticKITTI labels
    sparsemask segment-points IN.ply OUT.ply --weights FILE        a room with colours; any of .ply .bin .npy .npz
    sparsemask segment-points IN OUT --weights FILE --show DIR     also draw classes and kept points
    sparsemask segment-points IN OUT --weights FILE --web P.html   also a page in which the cloud is turned by mouse

OUT.ply holds x, y, z, pred and the classes' colours, OUT.npz xyz, pred and names. Weights: a public checkpoint, a
run's, or its network.safetensors; a run's own configuration says how its clouds were thinned out and cut, else they are
as published. Scans go through in one pass, rooms crop by crop with votes; --votes and --whole choose.
"""

from __future__ import annotations

import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from sparsemask.cli.computing import add_computing, place
from sparsemask.errors import UseError, command
from sparsemask.options import Parser, factor, positive

SUFFIXES = (".ply", ".label", ".npz")


def parser() -> Parser:
    """The command's flags."""
    result = Parser("segment-points", prog="sparsemask segment-points", description=__doc__)
    result.add_argument("cloud", metavar="IN", help="the cloud: .bin (float32 x, y, z, remission), .ply, .npy or .npz")
    result.add_argument("out", metavar="OUT", help="the file to write: .ply, .label or .npz")
    result.add_argument("--weights", required=True, help="the network's weights")
    result.add_argument("--show", metavar="DIR", default=None, help="draw classes and kept points into a folder")
    result.add_argument("--web", metavar="HTML", default=None, help="write a page that shows the cloud")
    result.add_argument(
        "--bin_columns",
        type=positive,
        default=None,
        metavar="N",
        help="float32 values a point of a .bin, x, y, z first (default: 4; of .pcd.bin 5)",
    )
    result.add_argument("--grid", type=factor, default=None, help="side of the voxels in metres (default: as trained)")
    result.add_argument("--n_points", type=positive, default=None, help="points of a crop (default: as trained)")
    method = result.add_mutually_exclusive_group()
    method.add_argument(
        "--votes", action="store_true", default=None, help="by votes of overlapping crops, as published"
    )
    method.add_argument("--whole", action="store_true", help="the whole cloud in one pass")
    add_computing(result)
    return result


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    options = parser().parse_args(argv)
    out = check_output(Path(options.out), options.show, options.web)

    from sparsemask.spaces.sparse_conv.masking import mean_kept
    from sparsemask.tasks.points.clouds.cloud import read_cloud
    from sparsemask.tasks.points.layouts import semantickitti
    from sparsemask.tasks.points.task import WritesRawLabels
    from sparsemask.tasks.points.whole import recipe, segment

    network, run_config = load(Path(options.weights))
    compute = place(network, options)
    settings = recipe(network, run_config, options.weights, n_points=options.n_points, grid=options.grid)
    if out.suffix == ".label" and not issubclass(settings.task, WritesRawLabels):
        raise UseError(f"{out}: .label files hold SemanticKITTI's labels, and these weights are of other classes: .ply")
    prepared = semantickitti.prepared_file(options.cloud) if out.suffix.lower() == ".label" else None
    if prepared is not None:
        semantickitti.check_original(prepared)
    began = time.perf_counter()
    cloud = read_cloud(options.cloud, options.bin_columns)
    read = time.perf_counter() - began
    segmented = segment(
        cloud,
        network,
        settings,
        compute,
        False if options.whole else options.votes,
        lambda module: float(mean_kept(module)),
    )
    classes, of = segmented.classes, ""
    if prepared is not None:
        classes = semantickitti.all_points(prepared, prepared.read(), classes)
        of = f", labels of all {len(classes)} points of the scan"
    write(out, cloud, classes, settings)
    steps = {"read": read, **segmented.seconds}
    durations = ", ".join(f"{name} {spent:.2f}" for name, spent in steps.items())
    print(
        f"{options.cloud} ({len(cloud)} points) -> {out}{of}: {sum(steps.values()):.2f} s ({durations}); "
        f"{len(segmented.thin)} points {settings.grid:g} m apart; kept {100 * segmented.kept:.0f} % ({options.weights})"
    )
    for path in show(cloud, segmented, settings, options.show, options.web):
        print(f"written: {path}")
    return 0


def check_output(out: Path, show: str | None, web: str | None) -> Path:
    """The file to write; UseError, before any work, where something could not be written."""
    if out.suffix.lower() not in SUFFIXES:
        raise UseError(f"{out}: written are {', '.join(SUFFIXES)}")
    if web is not None and Path(web).suffix.lower() not in (".html", ".htm"):
        raise UseError(f"--web {web}: a page is written as .html")
    for path in filter(None, (out, Path(web) if web else None)):
        if not path.parent.is_dir():
            raise UseError(f"{path}: no such folder: {path.parent}")
    if show is not None and Path(show).exists() and not Path(show).is_dir():
        raise UseError(f"--show {show}: is a file, expected a folder")
    return out


def load(path: Path) -> tuple[object, Mapping]:
    """(the network, the configuration of the run it comes from or an empty one)."""
    from sparsemask import spaces
    from sparsemask.containers import read_yaml
    from sparsemask.weights import file_space, read_checkpoint

    name = file_space(path) or "smpointseg"
    if name != "smpointseg":
        raise UseError(f"{path}: weights of space '{name}', not of 'smpointseg'")
    network = spaces.get(name).load(path).network
    run_config = read_checkpoint(path).get("config") if path.suffix != ".safetensors" else None
    beside = path.parent / "config.yaml"
    if run_config is None and beside.is_file():
        run_config = read_yaml(beside)
    return network, run_config if isinstance(run_config, Mapping) else {}


def write(path: Path, cloud, classes: np.ndarray, recipe) -> None:
    """Write the classes (N,) of a cloud's points."""
    from sparsemask.files import write_bytes
    from sparsemask.pictures.point_clouds.layers import class_colours
    from sparsemask.tasks.points.clouds.ply import write_ply

    kind = path.suffix.lower()
    if kind == ".label":
        write_bytes(path, recipe.task.raw_labels(classes))
        return
    if kind == ".npz":
        buffer = io.BytesIO()
        np.savez_compressed(buffer, xyz=cloud.coordinates, pred=classes.astype(np.uint8), names=np.array(recipe.names))
        write_bytes(path, buffer.getvalue())
        return
    columns = dict(zip("xyz", cloud.coordinates.T, strict=True)) | {"pred": classes.astype(np.uint8)}
    colours = class_colours(recipe.names)[classes]
    columns |= dict(zip(("red", "green", "blue"), colours.T, strict=True))
    if cloud.labels is not None:
        columns["label"] = cloud.labels
    write_ply(path, columns, comment="classes: " + " ".join(recipe.names))


def show(cloud, segmented, recipe, folder: str | None, web: str | None) -> list[Path]:
    """Draw what was asked for; returns the files."""
    from sparsemask.pictures.point_clouds.figures import draw_clouds, draw_kept
    from sparsemask.pictures.point_clouds.viewer import write_viewer

    files = []
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for view in ("perspective", "bird"):
            path = Path(folder) / f"{cloud.name}_{view}.png"
            files.append(draw_clouds(path, cloud.xyz, {"prediction": segmented.classes}, recipe.names, view=view))
        files.append(draw_kept(Path(folder) / f"{cloud.name}_kept.png", segmented.crop, segmented.masks))
    if web is not None:
        layers = {"prediction": segmented.classes}
        if cloud.colours is not None:
            layers["colours"] = np.rint(255 * cloud.colours).astype(np.uint8)
        files.append(write_viewer(web, cloud.xyz, layers, recipe.names, title=cloud.name))
    return files
