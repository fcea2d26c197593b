"""A run that was stopped, in whatever way, gives the weights of one that was not, bit by bit."""

import random
import signal

import pytest

from tests.training.conftest import Workplace, identical


def same_end(workplace: Workplace, a: str, b: str) -> bool:
    last = workplace.options["train"]["total_iter"]
    best = [(workplace.experiment(name) / "models/net_g_best.pth").read_bytes() for name in (a, b)]
    return best[0] == best[1] and identical(workplace.checkpoint(last, a), workplace.checkpoint(last, b))


def train_whole(workplace: Workplace) -> None:
    workplace.options["name"] = "whole"
    workplace.train()
    workplace.options["name"] = "stopped"


@pytest.mark.parametrize("data_set", ["CachedPairedImageDataset", "PairedImageDataset"])
def test_killed_run_resumes_bit_by_bit(workplace, data_set):
    workplace.options["datasets"]["train"]["type"] = data_set
    train_whole(workplace)
    for iteration, arguments in ((3, []), (7, ["--auto_resume"])):
        run = workplace.start(*arguments)
        run.wait_for(f" {iteration}/")
        run.signal(signal.SIGKILL)
        run.end(-signal.SIGKILL)
    assert "exact" in workplace.train("--auto_resume")
    assert same_end(workplace, "stopped", "whole")


def test_same_seed_gives_the_same_weights_whatever_the_workers(workplace):
    train_whole(workplace)
    workplace.options["datasets"]["train"]["num_worker_per_gpu"] = 3
    workplace.options["train"]["deterministic"] = True
    assert "Precision  fp32, deterministic" in workplace.train()
    assert same_end(workplace, "stopped", "whole")
    workplace.options |= {"name": "other seed", "manual_seed": 11}
    workplace.train()
    assert not same_end(workplace, "other seed", "whole")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)], ids=["TERM", "USR1", "INT"]
)
def test_signal_saves_and_says_how_to_go_on(workplace, number, code):
    train_whole(workplace)
    workplace.options["logger"]["save_checkpoint_freq"] = 1000
    run = workplace.start()
    run.wait_for(" 4/")
    run.signal(number)
    said = run.end(code)
    assert "the last good checkpoint is" in said
    assert "training_states" in said
    assert "Traceback" not in said
    workplace.train("--auto_resume")
    workplace.options["logger"]["save_checkpoint_freq"] = 2
    assert same_end(workplace, "stopped", "whole")


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_fifty_kills_at_random_moments(workplace):
    """At random moments, so also while data are loaded, files are written, or images are validated."""
    workplace.options["train"] |= {"total_iter": 150, "scheduler": {"type": "CosineAnnealingLR", "T_max": 150}}
    workplace.options["val"]["val_freq"] = 10
    train_whole(workplace)
    moments = random.Random(0)
    kills = 0
    workplace.options["train"]["total_iter"] = 100000
    while kills < 50:
        run = workplace.start("--auto_resume")
        if kills % 3:  # else it may be hit before the first iteration
            run.wait_for("l_pix")
        run.process.join(moments.uniform(0, 1.5))
        run.signal(signal.SIGKILL)
        run.end(-signal.SIGKILL)
        kills += 1
    workplace.options["train"]["total_iter"] = 150
    workplace.train("--auto_resume")
    assert same_end(workplace, "stopped", "whole")
