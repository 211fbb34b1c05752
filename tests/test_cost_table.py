"""The cost table of connectivity networks: its model with known costs of steps, its file, and its expectations."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from pyramid import Pyramid
from sparsemask import UseError, costs
from sparsemask.masks import UP
from sparsemask.masks.decoder import DecoderMask, decoder_mask
from sparsemask.spaces.connectivity import PrunedNetwork, named_mask
from sparsemask.spaces.connectivity import cost_table as module
from sparsemask.spaces.connectivity.cost_table import CostTable, cost_table
from sparsemask.spaces.connectivity.decoder_steps import Geometry, Step, decoder_steps
from sparsemask.timing import timer

NAME, SIZE, DEPTH, CLASSES = "pyramid:Pyramid", (33, 41), 16, 5
GEOMETRY = Geometry((12, 10, 8, 6), ((5, 6), (9, 11), (9, 11), (17, 21)), DEPTH, CLASSES)
ENCODER = (2.0, 1.5, 1.0, 0.5)


def known(step: Step) -> float:
    """Milliseconds of a step on a machine that does not exist."""
    if step.kind == "encoder":
        return ENCODER[step.site[0]]
    area = step.site[0] * step.site[1] + sum(step.site[2:])
    return 0.01 + 1e-5 * area * step.width * (1 + len(step.kind) / 10)


class Clock:
    """Known times, without calling anything; networks take their steps' times times a factor."""

    def __init__(self, factor: float = 1.0, busy: float = 1.0):
        self.factor, self.busy, self.asked = factor, busy, 0

    def __call__(self, functions, rounds):
        self.asked += len(functions)
        return {key: self._ms(key) for key in functions}, self.busy

    def _ms(self, key) -> float:
        if isinstance(key, Step):
            return known(key)
        mask, last = key if isinstance(key, tuple) else (key, True)
        return self.factor * self.of(mask) * (1 if last else 2)

    @staticmethod
    def of(mask: DecoderMask) -> float:
        return sum(known(step) for _, step in decoder_steps(GEOMETRY, mask))


def measured(**changes) -> CostTable:
    options = {"depth": DEPTH, "n_class": CLASSES, "threads": 1, "clock": Clock()} | changes
    return CostTable.measure(Pyramid(), SIZE, **options)


@pytest.fixture(scope="module")
def table() -> CostTable:
    return measured()


def random_masks(count: int = 24) -> list[np.ndarray]:
    return [named_mask(f"random-{1 + seed % 18}", 4, seed) for seed in range(count)]


def relaxed(mask: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(row[: i + 1].astype(np.float32)).requires_grad_() for i, row in enumerate(mask)]


def some_decoder(seed: int) -> DecoderMask:
    rng = np.random.default_rng(seed)
    mask = named_mask(f"random-{2 + seed % 12}", 4, seed)
    operations, widths = rng.integers(0, 3, 4), 8 * rng.integers(1, 9, 4)
    return decoder_mask(mask, operations, widths, context=bool(seed % 2))


def test_geometry_and_form_are_found(table):
    assert table.geometry == GEOMETRY and table.channels_last
    assert table.encoder_ms == ENCODER


def test_known_costs_are_predicted(table):
    for mask in random_masks():
        want = Clock.of(module._decoder(mask, DEPTH))
        assert table.predict(mask) == pytest.approx(want, rel=0.01)
    for seed in range(16):
        assert table.predict(some_decoder(seed)) == pytest.approx(Clock.of(some_decoder(seed)), rel=0.02)


def test_whole_networks_calibrate(table):
    slower = measured(clock=Clock(factor=1.4))
    for mask in random_masks():
        assert slower.predict(mask) == pytest.approx(1.4 * table.predict(mask), rel=0.05)
    assert slower.residual < 0.03


def test_one_disturbed_network_changes_little():
    class Disturbed(Clock):
        def _ms(self, key):
            unlucky = isinstance(key, DecoderMask) and key.connections.sum() == 20
            return super()._ms(key) * (3 if unlucky else 1)

    table = measured(clock=Disturbed())
    for mask in random_masks():
        assert table.predict(mask) == pytest.approx(Clock.of(module._decoder(mask, DEPTH)), rel=0.05)


def test_more_connections_are_never_cheaper(table):
    rng = np.random.default_rng(0)
    for mask in random_masks():
        free = [tuple(place) for place in np.argwhere(~mask & np.tri(4, dtype=bool)[..., None])]
        for i, j, kind in rng.permutation(free)[:6]:
            if kind == UP and j and not mask[j - 1].any():
                continue
            more = mask.copy()
            more[i, j, kind] = True
            assert table.predict(more) >= table.predict(mask) - 1e-9
            assert table.multiply_adds(more) >= table.multiply_adds(mask)


@pytest.mark.parametrize("depth", [5, 16])
def test_multiply_adds_are_those_of_the_network(depth):
    table = measured(depth=depth)
    for mask in random_masks(8):
        net = PrunedNetwork(mask, Pyramid(), depth=depth, num_classes=CLASSES)
        assert table.multiply_adds(mask) == costs.multiply_adds(net, (1, 3, *SIZE))


def test_multiply_adds_of_the_wider_space_are_those_of_the_network(table):
    for seed in range(12):
        decoder = some_decoder(seed)
        net = PrunedNetwork(decoder, Pyramid(), num_classes=CLASSES)
        assert table.multiply_adds(decoder) == costs.multiply_adds(net, (1, 3, *SIZE))


def test_explanation_sums_to_the_prediction(table):
    for mask in [*random_masks(4), some_decoder(1)]:
        rows = table.explain(mask)
        assert sum(ms for _, ms, _ in rows) == pytest.approx(table.predict(mask))
        assert sum(share for *_, share in rows) == pytest.approx(1)
        assert {"head", "context block"} & {part for part, *_ in rows}


def test_nothing_is_cheaper_than_the_cheapest(table):
    mask, ms = table.cheapest()
    assert ms == table.predict(mask)
    assert all(table.predict(other) >= ms for other in random_masks(40))
    decoder, least = table.cheapest(wide=True)
    assert least <= ms and isinstance(decoder, DecoderMask)
    assert all(table.predict(some_decoder(seed)) >= least for seed in range(16))


@pytest.mark.parametrize("currency", ["ms", "multiply-adds"])
def test_expected_cost_of_hard_masks_is_their_cost(table, currency):
    cost = table.predict if currency == "ms" else table.multiply_adds
    for mask in random_masks(40):
        v = relaxed(mask)
        expected = table.expected(v, currency)
        assert expected.item() == pytest.approx(cost(mask), rel=1e-4)
        expected.backward()
        assert all(torch.isfinite(row.grad).all() for row in v)


def test_stages_that_nothing_reads_cost_nothing(table):
    mask = named_mask("random-3", 4, 0)
    dead = mask.copy()
    stage = next(i for i in range(3) if not mask[i].any())
    dead[stage, 0] = True
    assert table.expected(relaxed(dead)).item() == pytest.approx(table.expected(relaxed(mask)).item())
    assert table.predict(dead) == pytest.approx(table.predict(mask))
    lacking = mask.copy()
    lacking[3, stage + 1, UP] = True  # reads a stage without inputs
    assert table.expected(relaxed(lacking)).item() == pytest.approx(table.expected(relaxed(mask)).item())


def test_expected_cost_of_one_open_connection_lies_between(table):
    for mask in random_masks(12):
        dense = np.argwhere(mask)[len(mask) % mask.sum()]
        i, j, kind = (int(n) for n in dense)
        values = []
        for share in (0.0, 0.5, 1.0):
            v = [row.detach() for row in relaxed(mask)]
            v[i][j, kind] = share
            values.append(table.expected(v).item())
        assert values[0] - 1e-5 <= values[1] <= values[2] + 1e-5


def test_expected_cost_rises_with_every_probability(table):
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        v = [torch.rand(i + 1, 2, generator=generator).requires_grad_() for i in range(4)]
        table.expected(v, "multiply-adds").backward()
        assert all((row.grad >= 0).all() for row in v)


def test_wrong_masks_and_currencies_are_refused(table):
    with pytest.raises(UseError, match="5 features"):
        table.predict(named_mask("unet", 5))
    with pytest.raises(UseError, match="currency"):
        table.expected(relaxed(named_mask("unet", 4)), "euros")
    with pytest.raises(UseError, match="relaxed masks of 4"):
        table.expected(relaxed(named_mask("unet", 5)))


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSEMASK_HOME", str(tmp_path))
    return tmp_path


def ask(lines: list[str], clock: Clock, **changes) -> CostTable:
    options = {"size": SIZE, "depth": DEPTH, "n_class": CLASSES, "threads": 1} | changes
    return cost_table(NAME, clock=clock, progress=lines.append, **options)


def test_a_kept_table_is_used_again(home):
    lines: list[str] = []
    clock = Clock()
    first = ask(lines, clock)
    assert clock.asked and "none measured so far" in lines[0]
    again = Clock()
    second = ask(lines, again)
    assert not again.asked and len(lines) == 1 and second == first
    other = Clock()
    ask(lines, other, threads=2)
    assert other.asked and len(lines) == 2  # a table of its own beside it
    assert len(list((home / "costs").glob("*.json"))) == 2


@pytest.mark.parametrize("field, value", [("processor", "Other CPU"), ("torch", "1.0"), ("version", 0)])
def test_a_table_of_another_machine_is_measured_anew(home, field, value):
    ask([], Clock())
    path = next((home / "costs").glob("*.json"))
    content = json.loads(path.read_text())
    content["key"][field] = value
    path.write_text(json.dumps(content))
    lines: list[str] = []
    clock = Clock()
    ask(lines, clock)
    assert clock.asked and f"of another {field} ({value})" in lines[0]
    assert json.loads(path.read_text())["key"][field] != value


def test_a_table_of_another_backbone_of_that_name_is_measured_anew(home, monkeypatch):
    ask([], Clock())
    monkeypatch.setattr(Pyramid, "channels", (12, 10, 8, 4))
    lines: list[str] = []
    clock = Clock()
    ask(lines, clock)
    assert clock.asked and "another form of the backbone" in lines[0]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: "{}",
        lambda text: text.replace('"encoder_ms": [', '"encoder_ms": [-1,'),
        lambda text: text.replace('"per_step": ', '"per_step": "x", "was": '),
        lambda text: text.replace('"per_step": ', '"per_step": Infinity, "was": '),
        lambda text: json.dumps(json.loads(text) | {"times": []}),
        lambda text: json.dumps(json.loads(text) | {"times": [["conv", 1]]}),
        lambda text: json.dumps(json.loads(text) | {"key": {"backbone": "x"}}),
        lambda text: json.dumps(json.loads(text) | {"geometry": 3}),
    ],
)
def test_a_damaged_table_is_measured_anew(home, spoil):
    ask([], Clock())
    path = next((home / "costs").glob("*.json"))
    path.write_text(spoil(path.read_text()))
    with pytest.raises(UseError):
        CostTable.load(path)
    lines: list[str] = []
    clock = Clock()
    ask(lines, clock)
    assert clock.asked and "\n" not in lines[0]
    assert CostTable.load(path).predict(named_mask("unet", 4)) > 0


def test_a_busy_machine_is_reported():
    lines: list[str] = []
    measured(clock=Clock(busy=1.8), progress=lines.append)
    assert len(lines) == 1 and "busy" in lines[0] and "1.80 times" in lines[0]
    measured(progress=lines.append)
    assert len(lines) == 1


def test_a_busy_machine_s_table_is_measured_again_and_the_better_one_kept(home):
    lines: list[str] = []
    ask(lines, Clock(busy=1.8))
    worse = Clock(busy=2.5)
    assert ask(lines, worse).busy == 1.8 and worse.asked
    assert any("measured on a busy machine" in line for line in lines)
    assert ask(lines, Clock(busy=1.02)).busy == 1.02
    idle = Clock()
    assert ask(lines, idle).busy == 1.02 and not idle.asked


def test_real_steps_are_timed():
    before, backbone = torch.get_num_threads(), Pyramid()
    state = torch.get_rng_state()
    clock = timer(torch.device("cpu"), 1)
    table = CostTable.measure(backbone, SIZE, DEPTH, threads=1, clock=clock, rounds=1, progress=lambda line: None)
    assert torch.get_num_threads() == before and torch.equal(torch.get_rng_state(), state)
    assert all(ms >= 0 for _, ms in table.times) and table.predict(named_mask("unet", 4)) > 0
