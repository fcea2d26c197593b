"""Checkpoints are whole or do not count; a damaged one is named and the one before it used; a full disk loses none."""

import subprocess

import pytest


def damage(path, how: str) -> None:
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(content[:middle] if how == "truncated" else content[:middle] + b"!!" + content[middle + 2 :])


@pytest.mark.parametrize("how", ["truncated", "changed"])
@pytest.mark.parametrize("name", ["models/net_g_12.pth", "training_states/12.state"])
def test_damaged_checkpoint_is_named_and_the_one_before_it_used(trained, name, how):
    damage(trained.experiment() / name, how)
    said = trained.train("--auto_resume")
    assert f"{name}: damaged" in said
    assert "from iteration 10, exact" in said


def test_without_a_whole_checkpoint_nothing_begins_anew_in_silence(trained):
    for path in trained.experiment().glob("training_states/*.state"):
        damage(path, "truncated")
    said = trained.train("--auto_resume", code=2)
    last = said.splitlines()[-1]
    assert last.startswith("dlgsanet: error: no checkpoint is whole")
    assert "leave --auto_resume out" in last


def test_last_few_the_best_and_the_latest_are_kept_and_their_checksums_hold(workplace):
    workplace.options["logger"]["keep_last"] = 2
    workplace.train()
    models = {path.name for path in (workplace.experiment() / "models").iterdir()}
    assert models == {"net_g_10.pth", "net_g_12.pth", "net_g_best.pth", "net_g_latest.pth"}
    states = {path.name for path in (workplace.experiment() / "training_states").iterdir()}
    assert states == {"10.state", "10.sha256", "12.state", "12.sha256"}
    subprocess.run(["sha256sum", "-c", "training_states/12.sha256"], cwd=workplace.experiment(), check=True)


def test_full_disk_stops_with_a_word_and_leaves_the_last_good_checkpoint(workplace):
    workplace.options["train"]["total_iter"] = 4
    workplace.train()
    before = {path: path.read_bytes() for path in workplace.experiment().rglob("*_4.pth")}
    workplace.options["train"]["total_iter"] = 12
    (workplace.experiment() / "models/.net_g_6.pth.part").symlink_to("/dev/full")  # what is written aside goes there
    said = workplace.train("--auto_resume", code=2)
    last = said.splitlines()[-1]
    assert "net_g_6.pth: No space left on device" in last
    assert "4.state; --auto_resume goes on from it" in last
    assert not list(workplace.experiment().rglob("*.part"))
    assert not list(workplace.experiment().rglob("*_6.pth"))
    assert all(path.read_bytes() == content for path, content in before.items())
    assert "from iteration 4, exact" in workplace.train("--auto_resume")


def test_fine_tuning_starts_from_a_checkpoint_of_another_run(trained):
    trained.options |= {"name": "tuned"}
    trained.options["path"]["pretrain_network_g"] = "experiments/run/models/net_g_best.pth"
    trained.options["train"] |= {"optim_g": {"type": "Adam", "lr": 0.0}, "total_iter": 1}
    trained.train()
    tuned = trained.weights(1, "tuned")["params"]
    best = trained.weights("best")["params_ema"]
    assert all(tuned[name].allclose(best[name]) for name in best)
