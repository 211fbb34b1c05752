"""Sections of a configuration: checked like the command line, frozen, found and replaced by flag."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from sparsemask import UseError
from sparsemask.config import RunConfig, Section, flag
from sparsemask.flags import DeviceSection, RunSection, TrainingSection
from sparsemask.options import Parser, natural, positive, rate
from sparsemask.prune import prune as prune_verb
from sparsemask.retrain import eval as evaluation
from sparsemask.retrain import export, train
from sparsemask.search import run as search_run


@dataclass(frozen=True, kw_only=True, slots=True)
class Base(Section):
    title = "base"
    space: str = flag("connectivity", help="the space")


@dataclass(frozen=True, kw_only=True, slots=True)
class Derived(Base):
    title = "derived"
    inherited_last = True
    size: int | None = flag(None, positive, help="pixels")
    rates: Sequence[float] = flag([1.0, 2.0], rate, nargs="+", help="rates")
    form: str = flag("auto", choices=("auto", "yes", "no"), help="form")
    fast: bool = flag(False, help="a switch")
    hidden: str | None = flag(help=None, group="elsewhere")

    def check(self) -> None:
        if self.fast and self.form == "no":
            raise UseError("--fast and --form no: the one or the other")


SECTIONS = {"run": RunSection, "network": Derived, "device": DeviceSection, "training": TrainingSection}


def parser(**more) -> Parser:
    made = Parser("search", prog="search/run.py")
    for role, section in SECTIONS.items():
        made.add_section(role, section, **(more if section is Derived else {}))
    return made


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"size": 0}, r"Derived.size: 'size' cannot be 0"),
        ({"size": "many"}, r"'size' cannot be 'many'"),
        ({"size": 1.5}, r"'size' cannot be 1.5"),
        ({"size": [1]}, r"'size' takes one value, found \[1\]"),
        ({"rates": 1.0}, r"'rates' takes a list, found 1.0"),
        ({"rates": [1.0, -2.0]}, r"'rates' cannot be \[1.0, -2.0\]"),
        ({"rates": [[1.0]]}, r"'rates' cannot be"),
        ({"form": "yess"}, r"must be one of auto, yes, no, not yess; did you mean 'yes'"),
        ({"fast": 1}, r"'fast' must be true or false, found 1"),
        ({"fast": True, "form": "no"}, r"--fast and --form no"),
    ],
)
def test_a_section_takes_what_the_command_line_takes(wrong, words):
    with pytest.raises(UseError, match=words):
        Derived(**wrong)


def test_values_are_read_as_the_command_line_reads_them():
    section = Derived(size="3", rates=["0.5", 1], fast=True)
    assert section.size == 3
    assert section.rates == (0.5, 1.0)
    assert section.values() == {
        "size": 3, "rates": [0.5, 1.0], "form": "auto", "fast": True, "hidden": None, "space": "connectivity"
    }  # fmt: skip


def test_a_whole_number_stays_one_where_the_flag_is_a_real_number():
    assert repr(TrainingSection(lr=1).lr) == "1"


def test_sections_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Derived().size = 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig(network=Derived()).network = None


def test_flags_of_a_parser_have_the_order_groups_and_texts_of_their_section():
    made = parser(defaults={"form": "yes"}, helps={"size": "edge length"})
    assert made.group("derived") == ["size", "rates", "form", "fast", "space"]
    assert made.group("elsewhere") == ["hidden"]
    shown = made.full_help()
    assert "edge length" in shown
    assert "pixels" not in shown
    assert "--hidden" not in shown
    assert made.get_default("form") == "yes"
    assert made.given(["--rates", "3", "4", "--fast"]) == {"rates": [3.0, 4.0], "fast": True}
    with pytest.raises(UseError, match="must be at least 1, not 0"):
        made.given(["--size", "0"])


def test_parsers_and_sections_agree_on_defaults():
    made = parser()
    for section in SECTIONS.values():
        values = section().values()
        assert {name: made.get_default(name) for name in values} == values


def test_sections_of_one_title_share_a_group():
    @dataclass(frozen=True, kw_only=True, slots=True)
    class More(Section):
        title = "base"
        more: bool = flag(False, help="more")

    made = Parser("search")
    made.add_section("network", Base)
    made.add_section("views", More)
    assert made.group("base") == ["space", "more"]


def config(**values) -> RunConfig:
    return RunConfig.from_flat(SECTIONS, values)


def test_flags_go_to_the_section_that_has_them():
    made = config(lr=0.1, size=3, gpu=-1, name="first")
    assert (made.training.lr, made.network.size, made.device.gpu, made.run.name) == (0.1, 3, -1, "first")
    assert made.data is None
    assert made["lr"] == made.get("lr") == 0.1
    assert "crop_size" not in made
    assert made.get("crop_size") is None
    with pytest.raises(KeyError, match="crop_size"):
        made["crop_size"]
    with pytest.raises(KeyError, match="crop_size"):
        config(crop_size=3)


def test_a_replaced_value_leaves_the_first_configuration_as_it_was():
    first = config(lr=0.1, size=3)
    second = first.replace(size=4, seed=7)
    assert (first.network.size, first.run.seed) == (3, 0)
    assert (second.network.size, second.run.seed, second.training.lr) == (4, 7, 0.1)
    with pytest.raises(KeyError, match="crop_size"):
        first.replace(crop_size=3)
    with pytest.raises(UseError, match="'size' cannot be 0"):
        first.replace(size=0)


def test_what_files_hold_makes_the_same_configuration_again():
    made = config(lr=0.1, rates=[0.25], resume="runs/a", config="short")
    flat = made.flat()
    assert "resume" not in flat
    assert "config" not in flat
    assert flat["rates"] == [0.25]
    assert RunConfig.from_flat(SECTIONS, flat) == made.replace(resume=None, config=None)
    assert set(made) == set(flat) | {"resume", "config", "dry_run"}


def test_flags_of_a_kind_are_checked_by_it():
    @dataclass(frozen=True, kw_only=True, slots=True)
    class Counted(Section):
        count: int = flag(0, natural, help="how many")

    with pytest.raises(UseError, match="'count' cannot be -1"):
        Counted(count=-1)


@pytest.mark.parametrize("space", ["connectivity", "hinge", "slim", "smpointseg", "smsr", "smstereo", "specialized"])
def test_every_flag_of_a_command_is_a_field_of_one_section(space):
    commands = [search_run, prune_verb, train, evaluation, export]
    for made in [command.parser(space) for command in commands]:
        names = [name for section in made.sections.values() for name in section.flags()]
        assert sorted(names) == sorted(made.actions()), made.prog
        defaults = made.resolve()
        assert RunConfig.from_flat(made.sections, defaults.flat()) == defaults
