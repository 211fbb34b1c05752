"""Every task keeps the contract of tasks, a user's own included; former methods of users' tasks are refused by name."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from argparse import Namespace

import pytest
import torch
import torch.nn.functional as F

import sparsemask
from small_config import configured
from small_tasks import BUILD, labelled
from sparsemask import UseError, tasks
from sparsemask.config import RunConfig
from sparsemask.retrain.eval import EvaluationSection
from sparsemask.tasks import LabelledData
from sparsemask.tasks.classification.options import ClassificationData
from sparsemask.tasks.dense.task import resize
from sparsemask.tasks.protocol import EvaluationContext, Task
from sparsemask.tasks.segmentation.task import SegmentationTask
from sparsemask.testing.tasks import CPU, TaskContract, labelled_options


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """For so few pixels more threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def contract(name: str) -> type[TaskContract]:
    """The contract's tests on one of the package's tasks."""
    return type(f"Test_{name}", (TaskContract,), {"make_task": lambda self, folder: BUILD[name](folder)})


TestSegmentation = contract("segmentation")
TestSaliency = contract("saliency")
TestEdges = contract("edges")
TestAde20k = contract("ade20k")
TestSuperResolution = contract("super_resolution")
TestStereo = contract("stereo")
TestClassification = contract("classification")
TestS3DIS = contract("s3dis")
TestSample = contract("sample")
TestSemanticKITTI = contract("semantickitti")


class Rare(SegmentationTask):
    """A user's own: rare classes weigh more, and the mean accuracy of classes decides."""

    primary = "mean_accuracy"

    def loss(self, output, target):
        counts = torch.bincount(target[target != 255], minlength=self.n_class).float()
        weights = counts.clamp_min(1).rsqrt()
        logits = resize(output, target.shape[-2:]).float()
        return F.cross_entropy(logits, target, weights / weights.mean(), ignore_index=255, reduction="sum")

    def metrics(self, scores):
        hit, truth = scores.matrix.diagonal(), scores.matrix.sum(1)
        present = truth > 0
        return {**super().metrics(scores), "mean_accuracy": float((hit[present] / truth[present]).mean())}


class TestRare(TaskContract):
    loss_is_sum = False  # weights are of the whole batch

    def make_task(self, folder):
        return Rare(labelled_options(**labelled(folder / "d")))


def test_every_task_is_here():
    assert set(BUILD) == set(tasks.available())


def test_names_and_flags_of_tasks_load_no_libraries():
    code = "import sys, sparsemask.tasks; print(*{'numpy', 'torch', 'yaml'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_task_gives_its_loops_or_whole_evaluations():
    bare = type("Bare", (Task,), dict.fromkeys(Task.__abstractmethods__))(configured(LabelledData))
    with pytest.raises(NotImplementedError, match="Bare needs measure, or an evaluate of its own"):
        bare.evaluate(torch.nn.Identity(), EvaluationContext(arithmetic=CPU))
    whole = type("Whole", (type(bare),), {"evaluate": lambda self, model, context, **how: how})
    assert whole(configured(LabelledData)).evaluate(None, None, limit=2) == {"limit": 2}


def test_a_network_of_another_task_is_asked_for():
    class Other(Namespace):
        """No task of the package."""

    with pytest.raises(TypeError, match="Other: no network is known for it"):
        TaskContract().make_model(Other())


@pytest.mark.parametrize(
    ("former", "now"), [("figures", r"metrics\(scores\)"), ("scores", r"evaluate\(model, context")]
)
def test_former_methods_are_refused_by_name(former, now):
    own = type("Own", (SegmentationTask,), {former: lambda self, *rest: {}})
    sparsemask.trust("mine:Own", own)
    with pytest.raises(UseError, match=f"task 'mine:Own': its method {former} is called {now}"):
        tasks.find("mine:Own")
    sparsemask.trust("mine:Rare", Rare)
    assert tasks.find("mine:Rare") is Rare


@pytest.mark.parametrize("own", [Namespace, lambda options: None, type("Own", (), {"evaluate": print})])
def test_what_is_no_task_is_refused(own):
    sparsemask.trust("mine:Other", own)
    with pytest.raises(UseError, match="is no class of a task"):
        tasks.find("mine:Other")


def test_a_task_that_lacks_a_method_cannot_be_made():
    with pytest.raises(TypeError, match="abstract"):
        type("Half", (Task,), {})(configured(LabelledData))


def test_a_context_is_what_the_flags_ask_for():
    given = EvaluationContext.from_config(CPU, configured(LabelledData, n_worker=3))
    assert given == EvaluationContext(arithmetic=CPU, n_worker=3)
    asked = RunConfig(data=LabelledData(), evaluation=EvaluationSection(eval_batch_size=4))
    assert EvaluationContext.from_config(CPU, asked).batch_size == 4
    both = EvaluationContext.from_config(CPU, dataclasses.replace(asked, data=ClassificationData(eval_batch=250)))
    assert both.batch_size == 250
