"""Pictures of clouds: paints, cameras, what stands before what, rooms laid open."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from sparsemask.errors import UseError
from sparsemask.pictures.point_clouds.figures import draw_clouds, draw_kept
from sparsemask.pictures.point_clouds.layers import (
    S3DIS_COLOURS,
    SEMANTICKITTI_COLOURS,
    Layer,
    as_layer,
    class_colours,
    error_layer,
    kept_layer,
)
from sparsemask.pictures.point_clouds.render import VIEWS, Scene, laid_open, project
from sparsemask.tasks.points.layouts import s3dis, semantickitti

NAMES = list(S3DIS_COLOURS)


@pytest.fixture
def cloud():
    """Some hundred points of a block of 4 × 3 × 1 m."""
    return (np.random.default_rng(0).random((400, 3)) * [4, 3, 1]).astype(np.float32)


def room(rng, points=3000):
    """(points, labels) of floor 1, ceiling 0 and a table 7 between them."""
    flat = rng.random((points, 3)) * [5, 4, 0]
    table = rng.random((points // 10, 3)) * [1, 1, 0] + [2, 1.5, 0.8]
    xyz = np.concatenate([flat, flat + [0, 0, 2.6], table]).astype(np.float32)
    return xyz, np.repeat([1, 0, 7], [points, points, points // 10])


@pytest.mark.parametrize(("module", "colours"), [(s3dis, S3DIS_COLOURS), (semantickitti, SEMANTICKITTI_COLOURS)])
def test_every_class_has_its_colour(module, colours):
    assert list(colours) == list(module.NAMES)
    # Told apart: no two classes look the same.
    assert len({tuple(one) for one in class_colours(list(colours))}) == len(colours)


def test_unknown_classes_get_colours_of_their_own():
    made = class_colours([f"thing {k}" for k in range(12)])
    assert len({tuple(one) for one in made}) == 12
    # A known name keeps its colour among strangers.
    assert tuple(class_colours(["thing", "floor"])[1]) == S3DIS_COLOURS["floor"]


def test_layers_by_hand():
    labels = as_layer(np.array([2, -1, 0, 2]), NAMES)
    assert labels.occurring() == [(0, 1), (2, 2), (13, 1)]
    assert labels.names[13] == "no label"
    assert tuple(labels.rgb[0]) == S3DIS_COLOURS["wall"]
    errors = error_layer(np.array([1, 1, 5]), np.array([1, 2, -1]))
    assert [errors.names[k] for k in errors.index] == ["right", "wrong", "no label"]
    # A mask speaks of the first points only.
    kept = kept_layer(np.array([[True, False]]), 3)
    assert [kept.names[k] for k in kept.index] == ["kept", "dropped", "not on this level"]
    assert [as_layer(np.array([True, False])).names[k] for k in (0, 1)] == ["dropped", "kept"]
    colours = np.zeros((4, 3), np.uint8)
    assert as_layer(colours) is colours


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: as_layer(np.array([13]), NAMES), "label 13"),
        (lambda: as_layer(np.array([0.5])), "float64"),
        (lambda: as_layer(np.zeros((4, 3), int)), "labels"),
        (lambda: as_layer(np.array([0]), NAMES, np.zeros((2, 3))), "colours of shape"),
        (lambda: as_layer(np.array([0]), [str(k) for k in range(300)]), "255"),
        (lambda: error_layer(np.zeros(3), np.zeros(4)), "3"),
        (lambda: kept_layer(np.ones(5, bool), 4), "mask of 5 points"),
    ],
)
def test_paints_that_do_not_fit(make, said):
    with pytest.raises(UseError, match=said):
        make()


def test_from_above_x_is_right_and_y_is_up():
    xyz = np.array([[0, 0, 0], [2, 0, 0], [0, 1, 0], [2, 1, 0]], np.float32)
    places = project(xyz, "bird", (100, 200))
    assert places.across[1] > places.across[0]
    assert places.down[2] < places.down[0]
    assert ((places.across > 0) & (places.across < 200) & (places.down > 0) & (places.down < 100)).all()


@pytest.mark.parametrize("view", VIEWS)
def test_the_nearer_point_hides_the_farther(view, cloud):
    # Two points in one line of sight of each camera; the higher one is nearer to both.
    sight = {"bird": np.array([0, 0, 1.0]), "perspective": None}[view]
    if sight is None:
        towards = np.radians(-118), np.radians(38)
        sight = np.array(
            [np.cos(towards[1]) * np.cos(towards[0]), np.cos(towards[1]) * np.sin(towards[0]), np.sin(towards[1])]
        )
    middle = (cloud.min(0) + cloud.max(0)) / 2
    xyz = np.concatenate([cloud, [middle], [middle + sight * 0.4]]).astype(np.float32)
    rgb = np.zeros((len(xyz), 3), np.uint8)
    rgb[-2], rgb[-1] = (255, 0, 0), (0, 255, 0)
    scene = Scene(xyz, view, (150, 200))
    # Alone each is seen (drawn over all others); together only the nearer.
    only = np.arange(len(xyz))
    for last, channel in ((len(xyz) - 2, 0), (len(xyz) - 1, 1)):
        assert (scene.picture(rgb, only == last)[..., channel] > 100).sum() > 3
    both = scene.picture(rgb, only >= len(xyz) - 2)
    assert (_pure(both, 1)).sum() > (_pure(both, 0)).sum()


def _pure(picture, channel):
    others = np.delete(picture, channel, axis=2).max(-1)
    return (picture[..., channel] > 100) & (others < 60)


def test_a_room_is_laid_open():
    xyz, labels = room(np.random.default_rng(1))
    for view in VIEWS:
        shown = laid_open(xyz, view)
        # The ceiling goes, the table stays.
        assert not shown[labels == 0].any()
        assert shown[labels == 7].all()
    # A street has no ceiling: nothing of it is left out.
    assert laid_open(xyz[labels != 0], "bird").all()


@pytest.mark.parametrize("view", VIEWS)
def test_pictures_are_written(view, tmp_path):
    xyz, labels = room(np.random.default_rng(2), 800)
    panels = {"prediction": labels, "errors": error_layer(labels, labels), "kept": labels > 0}
    path = draw_clouds(tmp_path / "c.png", xyz, panels, NAMES, view=view, title="A room")
    picture = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    # The floor's blue is there; the legend has no ceiling, which is left out, so that its yellow is nowhere.
    assert (np.abs(picture.astype(int) - S3DIS_COLOURS["floor"]).max(1) < 12).any()
    assert not (np.abs(picture.astype(int) - S3DIS_COLOURS["ceiling"]).max(1) < 8).any()
    # The same drawing gives the same file.
    again = draw_clouds(tmp_path / "again.png", xyz, panels, NAMES, view=view, title="A room")
    assert again.read_bytes() == path.read_bytes()


def test_kept_points_level_by_level(cloud, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "sparsemask.pictures.point_clouds.figures._draw", lambda path, xyz, layers, *_: seen.append(layers) or path
    )
    draw_kept(tmp_path / "k.png", cloud, [np.arange(400) < 100, np.ones((1, 100), bool), np.zeros(25, bool)])
    assert list(seen[0]) == [
        "level 1: 25 % of 400 points kept", "level 2: 100 % of 100 points kept", "level 3: 0 % of 25 points kept"
    ]  # fmt: skip
    # Coarser levels have fewer points, which are drawn larger.
    sizes = [layer.larger for layer in seen[0].values()]
    assert sizes == sorted(sizes) and sizes[0] == 1.0
    monkeypatch.undo()
    assert draw_kept(tmp_path / "k.png", cloud, [np.ones(400, bool)] * 4).stat().st_size > 10_000


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("view", VIEWS)
def test_tiny_and_flat_clouds(count, view, tmp_path):
    flat = np.full((count, 3), 7.0, np.float32)
    path = draw_clouds(tmp_path / "t.png", flat, {"one place": np.zeros(count, int)}, ["thing"], view=view)
    picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
    # One dot in the middle of the panel, in the shaded colour of the class: red above green above blue.
    coloured = (np.diff(picture, axis=2) < -15).all(2)
    rows, columns = coloured[:500].nonzero()  # the legend is below
    assert 1 <= len(rows) <= 25
    assert abs(rows.mean() - 279) < 3 and abs(columns.mean() - picture.shape[1] / 2) < 3


@pytest.mark.parametrize(
    ("xyz", "panels", "said"),
    [
        (np.zeros((0, 3)), {"a": np.zeros(0, int)}, "shape"),
        (np.zeros((5, 2)), {"a": np.zeros(5, int)}, "shape"),
        (np.array([[0, 0, np.nan], [1, 1, 1]]), {"a": np.zeros(2, int)}, "1 of 2 points"),
        (np.zeros((5, 3)), {}, "no panels"),
        (np.zeros((5, 3)), {"a": np.zeros(4, int)}, "a: 4 values for a cloud of 5"),
        (np.zeros((5, 3)), {"a": Layer(np.zeros(6, np.uint8), ["x"], np.zeros((1, 3), np.uint8))}, "6 values"),
    ],
)
def test_clouds_that_do_not_fit(xyz, panels, said, tmp_path):
    with pytest.raises(UseError, match=said):
        draw_clouds(tmp_path / "c.png", xyz, panels)
    # Nothing half written.
    assert not list(tmp_path.iterdir())


def test_unknown_views_and_no_masks(cloud, tmp_path):
    with pytest.raises(UseError, match="unknown view 'side'"):
        draw_clouds(tmp_path / "c.png", cloud, {"a": cloud[:, 0] > 1}, view="side")
    with pytest.raises(UseError, match="no masks"):
        draw_kept(tmp_path / "c.png", cloud, [])


def test_a_real_scan(shared_data, tmp_path):
    scan = shared_data / "semantickitti_sample" / "sequences" / "00" / "velodyne" / "000000.bin"
    xyz = np.fromfile(scan, np.float32).reshape(-1, 4)[::10, :3]
    # No ceiling is taken from a street, though vegetation hangs over it.
    assert laid_open(xyz, "perspective").all()
    for view in VIEWS:
        path = draw_clouds(tmp_path / f"{view}.png", xyz, {"all": np.ones(len(xyz), bool)}, view=view)
        # Nearly all of a picture of a scan is not paper, and not paint only.
        white = (np.asarray(Image.open(path).convert("L")) > 250).mean()
        assert 0.3 < white < 0.97
