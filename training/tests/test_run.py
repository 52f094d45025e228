"""What every training schedule shares: its steps, its checkpoints, going on from them."""

import argparse
import json

import pytest

torch = pytest.importorskip("torch")

from visaged_training.train import Average, Run  # noqa: E402


def run_of(out, minutes: float, resume: bool):
    torch.manual_seed(0)
    net = torch.nn.Linear(2, 1)
    args = argparse.Namespace(out=out, minutes=minutes, save_every=1e9, resume=resume)
    average = Average(net, 0.9)
    return Run("test", args, {"net": net}, {"mean": average}, lambda: {"judged": 1}, {"phase": "first"}), net, average


def test_a_run_goes_on_where_its_checkpoint_was_and_tells_of_all_its_steps(tmp_path):
    run, net, average = run_of(tmp_path, 0.002, False)
    seen = []
    for progress in run:
        seen.append(progress)
        with torch.no_grad():
            net.weight += 1
        average.update(net)
        run.show(loss=torch.tensor(2.0))
        run.more["phase"] = "second"
    assert run.finish(4, extra="x") == 0
    assert len(seen) == run.step and seen == sorted(seen) and seen[-1] < 1
    told = json.loads((tmp_path / "test.json").read_text())
    assert told == {"judged": 1, "steps": run.step, "pictures": 4 * run.step, "extra": "x"}
    assert run.shown == {"loss": 2.0}

    again, other, mean = run_of(tmp_path, 0.004, True)
    assert (again.step, again.more, mean.steps) == (run.step, {"phase": "second"}, run.step)
    assert torch.equal(other.weight, net.weight)
    assert torch.equal(mean.module.weight, average.module.weight)
    assert torch.equal(torch.load(tmp_path / "mean.pt", weights_only=True)["weight"], average.module.weight)
    first = next(iter(again))
    assert 0.4 < first < 1, "time that was spent counts"


def test_without_resume_a_checkpoint_is_not_looked_at(tmp_path):
    run, _, _ = run_of(tmp_path, 0.001, False)
    for _ in run:
        pass
    run.finish(1)
    assert run_of(tmp_path, 0.001, False)[0].step == 0
