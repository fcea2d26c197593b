"""Decay branches: they start as their run was, decay to the end, and leave the run as it is."""

import math
import signal

import pytest
import yaml

from tests.training.conftest import identical, resumed


def rates(said: str) -> dict[int, float]:
    """Learning rate by iteration, as the log shows them."""
    words = [line.split() for line in said.splitlines() if "  lr " in line]
    return {int(w[2].split("/")[0].replace(",", "")): float(w[w.index("lr") + 1]) for w in words}


@pytest.fixture
def constant(workplace):
    """A run of 8 iterations at a constant rate, which its option file lets go on to 100."""
    workplace.options["train"] |= {"scheduler": {"type": "WSD"}, "total_iter": 100}
    workplace.start(stop=(8, signal.SIGTERM)).end(75)
    return workplace


def test_branch_decays_from_the_newest_checkpoint_and_the_run_goes_on(constant):
    before = constant.checkpoint(8)
    said = constant.train("--decay-now", "4")
    assert resumed(said) == (8, True)
    expected = [0.001 * (1 - math.sqrt(share)) for share in (0, 0.25, 0.5, 0.75)]
    assert [*rates(said).values()] == pytest.approx(expected, rel=0.01)
    name = "run_decay_8"
    written = yaml.safe_load((constant.experiment(name) / f"{name}.yml").read_text())
    assert (written["name"], written["train"]["total_iter"]) == (name, 12)
    start, end = constant.checkpoint(8, name), constant.checkpoint(12, name)
    assert all(identical(start[key], before[key]) for key in ("weights", "optimizers", "random"))
    assert end["position"]["samples"] == 12 * 4
    assert constant.weights("best", name).keys() == {"params", "params_ema", "iteration"}
    assert identical(constant.checkpoint(8), before)
    constant.options["train"]["total_iter"] = 10
    assert [*rates(constant.train("--auto_resume")).values()] == pytest.approx([0.001, 0.001])


def test_interrupted_branch_is_continued_by_the_same_command_and_by_its_file(constant):
    constant.options["logger"]["keep_last"] = 9
    constant.train("--decay-now", "8")
    whole = constant.checkpoint(16, "run_decay_8")
    file = constant.experiment("run_decay_8") / "run_decay_8.yml"
    for arguments in (["--decay-now", "8"], ["-opt", str(file), "--auto_resume"]):
        for path in constant.experiment("run_decay_8").glob("training_states/1*.state"):
            path.unlink()  # as if it had been killed after iteration 8
        constant.train(*arguments)
        assert identical(constant.checkpoint(16, "run_decay_8"), whole)
    assert "run_decay_8.yml" in constant.train("--decay-now", "5", code=2)


def test_run_with_another_schedule_branches_too_and_may_change_to_a_constant_rate(trained):
    trained.options["train"]["total_iter"] = 14  # MultiStepLR, halved after iteration 8
    said = trained.train("--decay-now", "2")
    assert [*rates(said).values()] == pytest.approx([0.0005, 0.0005 * (1 - math.sqrt(0.5))], rel=0.01)
    trained.options["train"]["scheduler"] = {"type": "WSD"}
    assert [*rates(trained.train("--auto_resume")).values()] == pytest.approx([0.0005, 0.0005])


def test_ranks_branch_together(constant):
    constant.options["datasets"]["train"] |= {"batch_size_per_gpu": 2, "num_worker_per_gpu": 0}
    for run in constant.start_ranks(2, "--decay-now", "3"):
        run.end()
    assert constant.checkpoint(11, "run_decay_8")["position"]["samples"] == 11 * 4


def test_what_cannot_branch_is_refused_and_leaves_nothing(workplace, constant):
    assert "--decay-now" in constant.train("--decay-now", "0", code=2)
    constant.options["name"] = "never_trained"
    assert "never_trained" in constant.train("--decay-now", "4", code=2)
    assert not constant.experiment("never_trained_decay_0").exists()
