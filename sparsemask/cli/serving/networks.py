"""What the page shows of a picture: by networks with a class for every pixel, and by those that enlarge.

Pictures come from anybody. They are looked at by their header before they are decoded, and decoded by the readers that
the commands use.
"""

from __future__ import annotations

import io
import time
import warnings
from abc import ABC, abstractmethod
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from sparsemask import models, spaces
from sparsemask.api.prediction import PROGRAMS, open_predictor
from sparsemask.cli.computing import place
from sparsemask.cli.enlarging import Enlarger, Masked, as_input, find_enlarger
from sparsemask.devices import Arithmetic
from sparsemask.errors import UseError
from sparsemask.pictures.files import Picture, decode_picture, encode_picture, encoded
from sparsemask.pictures.overlay import heat, overlay, percent
from sparsemask.prediction import Predictor
from sparsemask.sparse import repeatable
from sparsemask.timing import compare
from sparsemask.VOC12.images import decoding, read_picture
from sparsemask.weights import file_space, metadata

NAME = "the picture"  # what messages call it: names that clients give are not used
# Read by Pillow itself: no other program is started, as for PostScript.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
LONGEST = 1600  # pixels; pictures whose classes are shown are reduced to it
LARGEST_DECODED = 50_000_000  # pixels of a picture that is reduced
_TOGETHER = 300_000  # pixels up to which the form without masks is timed too: it is computed in one piece
_QUICK, _ROUNDS = 0.5, 3  # seconds of a call up to which it is timed that often
_SHARED = "network.safetensors"  # of a finished run
_TASK = "super_resolution"

Result = TypeVar("Result")


class Refused(UseError):
    """A request that is not served.

    Args:
        status: what HTTP calls the reason.
        message: one line.
    """

    def __init__(self, status: HTTPStatus, message: str):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Shown:
    """A picture on the page.

    Attributes:
        label: what it is, in a few words.
        kind: its media type.
        data: the file's content.
    """

    label: str
    kind: str
    data: bytes = field(repr=False)


@dataclass(frozen=True)
class Answer:
    """What a network makes of a picture, as the page shows it.

    Attributes:
        size: width and height of the picture that was computed.
        times: milliseconds by what was timed.
        before, after: two pictures of one place, laid over each other.
        classes: name, colour [red, green, blue] and share of the picture of each class that occurs.
        masks: where it was computed.
        facts: further numbers by their names, as they are shown.
        notes: sentences.
    """

    size: tuple[int, int]
    times: dict[str, float]
    before: Shown
    after: Shown
    classes: Sequence[dict[str, Any]] = ()
    masks: Sequence[Shown] = ()
    facts: dict[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def values(self) -> dict[str, Any]:
        """All of it as plain values; pictures hold bytes."""
        return asdict(self)


class Served(ABC):
    """A network that the page offers."""

    name: str
    """What the page calls it."""
    most: int
    """Pixels of the largest picture that it takes."""

    def answer(self, data: bytes) -> Answer:
        """What it makes of the content of a picture's file.

        Raises:
            Refused: no picture that is read here, or one that is too large.
            UseError: the picture cannot be computed, for want of memory.
        """
        check_header(data, self.most)
        return self.compute(data)

    @abstractmethod
    def compute(self, data: bytes) -> Answer:
        """As :meth:`answer`, of a file whose header was checked."""

    def warm_up(self) -> None:
        """Compute a small picture: kernels are built, and what is wrong with the network shows."""
        self.answer(encoded(Image.fromarray(np.full((64, 96, 3), 128, np.uint8)), "PNG"))


class Segmenting(Served):
    """A network with a class for every pixel."""

    most = LARGEST_DECODED

    def __init__(self, predictor: Predictor, name: str):
        self.predictor, self.name = predictor, name

    def compute(self, data: bytes) -> Answer:
        """See :class:`Served`."""
        pixels = decoded(lambda: read_picture(io.BytesIO(data), NAME))
        notes = []
        if max(pixels.shape[:2]) > LONGEST:
            notes.append(f"The picture had {size_text(pixels)} pixels and was reduced to a longer side of {LONGEST}.")
            image = Image.fromarray(pixels)
            image.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
            pixels = np.array(image)
        prediction, spent = timed(lambda: self.predictor(pixels))
        palette = dict(zip(prediction.classes, self.predictor.description.palette.tolist(), strict=True))
        classes = [{"name": name, "colour": palette[name], "share": share} for name, share in prediction.shares.items()]
        return Answer(
            size=(pixels.shape[1], pixels.shape[0]),
            times={"network": spent},
            before=jpeg("picture", prediction.image),
            after=jpeg("classes", prediction.overlay),
            classes=classes,
            facts={"classes": f"{len(classes)} of {len(prediction.classes)}"},
            notes=notes,
        )


class Enlarging(Served):
    """A super-resolution network."""

    def __init__(self, enlarger: Enlarger, name: str, where: Arithmetic, most: int):
        self.enlarger, self.name, self.where, self.most = enlarger, name, where, most

    def compute(self, data: bytes) -> Answer:
        """See :class:`Served`."""
        image = decoded(lambda: decode_picture(io.BytesIO(data), NAME))
        enlarger = self.enlarger
        run = lambda: enlarger.enlarge(image, self.where)
        larger, spent = timed(run)
        times, facts = {"network": spent}, {"larger picture": larger.size}
        notes = [f"{remark[:1].upper()}{remark[1:]}." for remark in image.remarks]
        masks: list[Shown] = []
        if isinstance(enlarger, Masked):
            pixels, drawn = colours(image), enlarger.locations()
            masks.append(png("how many modules compute: bright all, dark none", heat(pixels, drawn)))
            for number, mask in enumerate(drawn, 1):
                masks.append(png(f"module {number}: {percent(float(mask.mean()))} of locations", overlay(pixels, mask)))
            facts["locations computed"] = percent(float(np.mean(drawn)))
            times = {"with masks": spent}
            if pixels.shape[0] * pixels.shape[1] <= _TOGETHER:
                times = self._both(enlarger, image, run, spent)
            else:
                notes.append(f"Without masks only pictures of at most {_TOGETHER} pixels are timed.")
        width, height = image.colour.shape[1::-1]
        return Answer(
            size=(width, height),
            times=times,
            before=as_png("before, enlarged by the browser", image),
            after=as_png("after, by the network", larger),
            masks=masks,
            facts=facts,
            notes=notes,
        )

    def _both(self, enlarger: Masked, image: Picture, run: Callable[[], object], spent: float) -> dict[str, float]:
        """Milliseconds with masks and without, called in turn."""
        dense, pixels = enlarger.without_masks(), as_input(image, self.where)
        with torch.no_grad(), repeatable():
            forms = {"with masks": run, "without masks": lambda: dense(pixels)}
            return compare(forms, _ROUNDS if spent < 1000 * _QUICK else 1, warmup=1, device=self.where.device)


def open_network(source: str, options: Namespace) -> Served:
    """The network of a name of `sparsemask models`, a file or a run's folder.

    Args:
        source: which.
        options: of the command: gpu, backend, pixels.

    Raises:
        UseError: there is none, or one of a task that the page does not show.
    """
    path = Path(source)
    if not path.exists():
        if path.suffix or path.parent != Path():
            raise UseError(f"{source}: no such file or run")
        path = models.find(source).path  # which names those that there are
    shared = path / _SHARED
    if shared.is_file() and metadata(shared).get("task") == _TASK:
        path = shared
    if path.is_file() and path.suffix.lower() not in PROGRAMS and _enlarges(path):
        enlarger = find_enlarger(str(path), None)
        name = f"{called(source)} (enlarges {enlarger.scale} times)"
        return Enlarging(enlarger, name, place(enlarger.network, options), int(options.pixels))
    predictor = open_predictor(path, gpu=options.gpu)
    return Segmenting(predictor, f"{called(source)} ({len(predictor.description.classes)} classes)")


def called(source: str) -> str:
    """The short name of a network's file or run: runs' own files are called like their folder."""
    path = Path(source).resolve()
    return path.parent.name if path.name == _SHARED else path.name


def _enlarges(path: Path) -> bool:
    """Whether a file of weights is taken for a super-resolution network's: those of other spaces say which."""
    space = file_space(path)
    return space is None or spaces.get(space).task == _TASK


def check_header(data: bytes, most: int) -> None:
    """Look at a picture's header.

    Args:
        data: the file's content.
        most: pixels.

    Raises:
        Refused: no picture of :data:`FORMATS`, or one of more pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes that are refused below, and of odd metadata
            with decoding(NAME), Image.open(io.BytesIO(data), formats=FORMATS) as image:
                width, height = image.size
    except UseError as error:
        raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, str(error)) from None
    if width * height > most:
        raise Refused(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"{NAME} has {width}x{height} pixels; this network takes {most / 1e6:g} million here: give a smaller one",
        )


def decoded(read: Callable[[], Result]) -> Result:
    """What a reader makes of a picture; Refused where it cannot."""
    try:
        return read()
    except UseError as error:
        raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, str(error)) from None


def timed(run: Callable[[], Result]) -> tuple[Result, float]:
    """(what a function gives, milliseconds): of the call itself where that is slow, else the median of three more."""
    began = time.perf_counter()
    result = run()
    spent = time.perf_counter() - began
    if spent > _QUICK:
        return result, 1000 * spent
    return result, compare({"again": run}, _ROUNDS, warmup=0)["again"]


def size_text(pixels: np.ndarray) -> str:
    """'640x480' of an image (H, W, 3)."""
    return f"{pixels.shape[1]}x{pixels.shape[0]}"


def colours(image: Picture) -> np.ndarray:
    """A picture's colours, uint8 (H, W, 3)."""
    return np.clip(np.rint(image.colour), 0, 255).astype(np.uint8)


def jpeg(label: str, pixels: np.ndarray) -> Shown:
    """An image uint8 (H, W, 3) for the page, a little blurred by JPEG."""
    return Shown(label, "image/jpeg", encoded(Image.fromarray(pixels), "JPEG", quality=92))


def png(label: str, pixels: np.ndarray) -> Shown:
    """An image uint8 (H, W, 3) for the page."""
    return Shown(label, "image/png", encoded(Image.fromarray(pixels), "PNG"))


def as_png(label: str, image: Picture) -> Shown:
    """A picture for the page, with its alpha and its bits."""
    return Shown(label, "image/png", encode_picture(image, "PNG")[0])
