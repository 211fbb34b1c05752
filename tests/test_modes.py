"""The engine's options, each through a real search of a few steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sparsemask.search import run as search_run
from tiny import SMALL, data_flags, make_data

pytestmark = pytest.mark.usefixtures("no_images")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


MODES = {
    "float64": ["--type", "float64"],
    "bfloat16": ["--type", "bfloat16"],
    "float16": ["--type", "float16"],
    "sgd": ["--optimizer", "sgd", "--schedule", "poly"],
    "adamw": ["--optimizer", "adamw"],
    "steps": ["--warmup", "0", "--schedule", "step", "--gamma", "0.1", "--milestones", "0.5"],
    "clipped": ["--clip", "0.1"],
    "frozen batch norms": ["--freeze_bn", "--batch_size", "1"],
    "by epochs": ["--max_epoch", "1"],
}


@pytest.mark.parametrize("mode", MODES)
def test_search_runs_in_every_mode(data, tmp_path, monkeypatch, mode):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPARSEMASK_HOME", str(tmp_path / "home"))
    steps = ["--max_iter", "3"] if mode != "by epochs" else []
    config = tmp_path / "c.yaml"
    config.write_text("max_iter: null\n")  # lets --max_epoch decide where the preset would
    argv = ["--config", str(config), *data_flags(data), *SMALL, *steps, *MODES[mode], "--name", "m"]
    assert search_run.main(argv) == 0
    rows = [json.loads(line) for line in (tmp_path / "runs/m/metrics.jsonl").read_text().splitlines()]
    state = torch.load(tmp_path / "runs/m/checkpoints/last.pt", weights_only=True)
    assert all(row["loss"] < 100 for row in rows)  # also refuses None, which a loss that is not finite becomes
    wanted = torch.float64 if mode == "float64" else torch.float32
    assert state["model"]["fc_conv.weight"].dtype == wanted
    # 9 pictures in batches of 4: three steps an epoch.
    assert rows[-1]["step"] == state["step"] == 3
    if mode == "steps":
        assert rows[-1]["lr"] == pytest.approx(0.1 * rows[0]["lr"])


def test_mask_warmup_holds_the_weights(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPARSEMASK_HOME", str(tmp_path / "home"))
    argv = [*data_flags(data), *SMALL, "--warmup", "0", "--max_iter", "4", "--mask_warmup", "2", "--name", "m"]
    assert search_run.main(argv) == 0
    rows = [json.loads(line) for line in (tmp_path / "runs/m/history.jsonl").read_text().splitlines()]
    assert set(rows[1]["weights"]) == {1.0}
    assert set(rows[2]["weights"]) != {1.0}
