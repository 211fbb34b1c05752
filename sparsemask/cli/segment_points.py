"""Segment points: a class for every point of a cloud, by a network that computes only where it must.

    sparsemask segment-points IN.bin OUT.label --weights FILE      a LiDAR scan, raw SemanticKITTI labels
    sparsemask segment-points IN.ply OUT.ply --weights FILE        a room with colours; any of .ply .bin .npy .npz
    sparsemask segment-points IN.laz OUT.laz --weights FILE        a survey: all is kept, the classification replaced
    sparsemask segment-points FOLDER 'more/*.las' --out-dir OUT --format ply    many clouds
    sparsemask segment-points IN OUT --weights FILE --show DIR     also draw classes and kept points
    sparsemask segment-points IN OUT --weights FILE --web P.html   also a page in which the cloud is turned by mouse
    sparsemask segment-points IN.ply OUT.ply --weights rooms       by a small example that ships: generated rooms

OUT.ply holds x, y, z, pred and the classes' colours, OUT.npz xyz, pred and names, OUT.las and OUT.laz (with laspy: pip
install 'sparsemask[las]') the classification. Of many clouds a bad one is named and the rest are done; the exit status
is 1 then. Weights: a public checkpoint, a run's, its network.safetensors, or a name of `sparsemask models`, else
smpointseg*.pt and the like in $SPARSEMASK_WEIGHTS or the cache. A run's own configuration, or its network's file, says
how clouds are thinned out and cut; else they are as published. Scans go through in one pass, rooms crop by crop with
votes; --votes and --whole choose.
"""

from __future__ import annotations

import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sparsemask.cli.computing import add_computing, place
from sparsemask.cli.inputs import Kind, each, expand, output_folder
from sparsemask.command_lines import spoken
from sparsemask.errors import UseError, command
from sparsemask.options import Parser, factor, positive

SUFFIXES = (".ply", ".label", ".npz", ".las", ".laz")


class CloudJob(NamedTuple):
    """A cloud to read, and the file to write."""

    source: str
    out: Path


def _is_cloud(path: Path) -> bool:
    from sparsemask.tasks.points.clouds.cloud import SUFFIXES as READ  # with torch, which --help does not need

    return path.suffix.lower() in READ and not path.name.startswith(".")


CLOUDS = Kind("cloud", "clouds", _is_cloud)


def parser() -> Parser:
    """The command's flags."""
    result = Parser("segment-points", prog="sparsemask segment-points", description=__doc__)
    result.add_argument(
        "clouds", metavar="IN", nargs="+",
        help="clouds: .bin (float32 x, y, z, remission), .ply, .npy, .npz, .las, .laz; folders or patterns; without "
        "--out-dir one cloud and OUT, the file to write: .ply, .label, .npz, .las or .laz",
    )  # fmt: skip
    result.add_argument("--weights", default=None, help="the network's weights (default: looked for, see above)")
    result.add_argument("--out-dir", "--out_dir", default=None, help="folder to write into, by the clouds' names")
    result.add_argument("--recursive", action="store_true", help="clouds in the folders of folders too")
    result.add_argument(
        "--format", choices=[suffix[1:] for suffix in SUFFIXES], default=None, help="of what goes there (default: ply)"
    )
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
    jobs = jobs_of(options)

    from sparsemask.tasks.points.task import WritesRawLabels
    from sparsemask.tasks.points.whole import recipe

    weights = find_weights(options.weights)
    network, run_config = load(weights)
    compute = place(network, options, options.type)
    settings = recipe(network, run_config, str(weights), n_points=options.n_points, grid=options.grid)
    out = jobs[0].out
    if out.suffix == ".label" and not issubclass(settings.task, WritesRawLabels):
        raise UseError(f"{out}: .label files hold SemanticKITTI's labels, and these weights are of other classes: .ply")
    do = lambda job: label(job, network, settings, compute, options, options.weights or str(weights))
    return each(jobs, do, lambda job: job.source, "clouds labelled", options.out_dir)


def jobs_of(options) -> list[CloudJob]:
    """The clouds of a command line; UseError, before any work, for what cannot be written."""
    from sparsemask.files import distinct_names

    if options.out_dir is None:
        if len(options.clouds) != 2:
            raise UseError("expected IN OUT, or clouds and --out-dir FOLDER")
        if options.format:
            raise UseError(f"--format is for --out-dir: the name {options.clouds[1]} says the format")
        if Path(options.clouds[0]).is_dir():
            raise UseError(
                f"{options.clouds[0]}: a folder of clouds needs --out-dir FOLDER instead of {options.clouds[1]}"
            )
        return [CloudJob(options.clouds[0], check_output(Path(options.clouds[1]), options.show, options.web))]
    if options.web:
        raise UseError(f"--web {options.web}: is for one cloud")
    folder = output_folder(options.out_dir)
    sources = expand(options.clouds, CLOUDS, recursive=options.recursive, without=folder)
    ending = f".{options.format or 'ply'}"
    jobs = [CloudJob(s, folder / f"{name}{ending}") for s, name in zip(sources, distinct_names(sources), strict=True)]
    read = {Path(source).resolve() for source in sources}
    if replaced := next((job.out for job in jobs if job.out.resolve() in read), None):
        raise UseError(f"{replaced}: would be replaced: give another --out-dir, or --format")
    check_output(folder.parent / f"a{ending}", options.show, None)
    return jobs


def label(job: CloudJob, network, settings, compute, options, weights: str) -> list[str]:
    """Segment a cloud and write its file; returns lines about it."""
    from sparsemask.spaces.sparse_conv.masking import mean_kept
    from sparsemask.tasks.points.clouds.cloud import read_cloud
    from sparsemask.tasks.points.layouts import semantickitti
    from sparsemask.tasks.points.whole import segment

    prepared = semantickitti.prepared_file(job.source) if job.out.suffix.lower() == ".label" else None
    if prepared is not None:
        semantickitti.check_original(prepared)
    began = time.perf_counter()
    cloud = read_cloud(job.source, options.bin_columns)
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
    job.out.parent.mkdir(parents=True, exist_ok=True)
    write(job.out, cloud, classes, settings, Path(job.source))
    steps = {"read": read, **segmented.seconds}
    durations = ", ".join(f"{name} {spent:.2f}" for name, spent in steps.items())
    said = [
        f"{job.source} ({len(cloud)} points) -> {job.out}{of}: {sum(steps.values()):.2f} s ({durations}); "
        f"{len(segmented.thin)} points {settings.grid:g} m apart; kept {100 * segmented.kept:.0f} % ({weights})"
    ]
    return said + [f"written: {path}" for path in show(cloud, segmented, settings, options.show, options.web)]


def find_weights(given: str | None) -> Path:
    """The file of --weights, or what lies in $SPARSEMASK_WEIGHTS or the cache; UseError that says how to get some."""
    from sparsemask import datasets, models

    path = models.path_of(given, "sample") if given else datasets.backbone_weights("smpointseg", None)
    if path is None:
        raise UseError(
            "no weights: give --weights FILE (a run's network.safetensors, or the public code's .pth), put it as "
            f"smpointseg.safetensors into $SPARSEMASK_WEIGHTS or {datasets.cache() / 'weights'}, or train some on "
            f"generated rooms: {spoken('search', '--space smpointseg')}, then prune and retrain; --weights rooms is a "
            "small example of those"
        )
    return Path(path)


def check_output(out: Path, show: str | None, web: str | None) -> Path:
    """The file to write; UseError, before any work, where something could not be written."""
    from sparsemask.tasks.points.clouds import las

    if out.suffix.lower() not in SUFFIXES:
        raise UseError(f"{out}: written are {', '.join(SUFFIXES)}")
    if web is not None and Path(web).suffix.lower() not in (".html", ".htm"):
        raise UseError(f"--web {web}: a page is written as .html")
    for path in filter(None, (out, Path(web) if web else None)):
        if not path.parent.is_dir():
            raise UseError(f"{path}: no such folder: {path.parent}")
    if out.suffix.lower() in las.SUFFIXES:
        las.check_written(out)
    if show is not None and Path(show).exists() and not Path(show).is_dir():
        raise UseError(f"--show {show}: is a file, expected a folder")
    return out


def load(path: Path) -> tuple[object, Mapping]:
    """(the network, the configuration of the run it comes from, else what its file says, which may be nothing)."""
    from sparsemask import spaces
    from sparsemask.containers import read_yaml
    from sparsemask.weights import file_space, metadata, read_checkpoint

    name = file_space(path) or "smpointseg"
    if name != "smpointseg":
        raise UseError(f"{path}: weights of space '{name}', not of 'smpointseg'")
    network = spaces.get(name).load(path).network
    shared, beside = path.suffix == ".safetensors", path.parent / "config.yaml"
    run_config = None if shared else read_checkpoint(path).get("config")
    if run_config is None and beside.is_file():
        run_config = read_yaml(beside)
    elif shared:
        run_config = metadata(path)
    return network, run_config if isinstance(run_config, Mapping) else {}


def write(path: Path, cloud, classes: np.ndarray, recipe, source: Path) -> None:
    """Write the classes (N,) of the points of a cloud, which was read from `source`."""
    from sparsemask.files import write_bytes
    from sparsemask.pictures.point_clouds.layers import class_colours
    from sparsemask.tasks.points.clouds import las
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
    colours = class_colours(recipe.names)[classes]
    if kind in las.SUFFIXES:
        original = source if source.suffix.lower() in las.SUFFIXES else None
        if cloud.colours is not None:
            colours = np.rint(255 * cloud.colours).astype(np.uint8)
        las.write_las(path, cloud.coordinates, classes, recipe.names, colours, original)
        return
    columns = dict(zip("xyz", cloud.coordinates.T, strict=True)) | {"pred": classes.astype(np.uint8)}
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
