"""A run that was stopped gives the weights of one that was not, bit by bit."""

import os
import signal

from tests.training.conftest import Workplace, identical


def kill_at(workplace: Workplace, iteration: int, *arguments: str) -> None:
    """Train, and kill the run with all its workers as soon as it reports an iteration."""
    process = workplace.start(*arguments)
    assert process.stderr
    for line in process.stderr:
        if f" {iteration}/" in line:
            break
    else:
        raise AssertionError(f"iteration {iteration} was never reported")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_killed_run_resumes_bit_by_bit(workplace):
    workplace.options["name"] = "whole"
    workplace.train()
    workplace.options["name"] = "killed"
    kill_at(workplace, 3)
    kill_at(workplace, 7, "--auto_resume")
    said = workplace.train("--auto_resume")
    assert "from iteration 6, exact" in said
    assert identical(workplace.checkpoint(12, "killed"), workplace.checkpoint(12, "whole"))
    best = [workplace.experiment(name) / "models/net_g_best.pth" for name in ("killed", "whole")]
    assert best[0].read_bytes() == best[1].read_bytes()
