"""Driver for the kill test: runs a campaign in forked children that SIGKILL themselves at chosen moments.

    python killed_campaign.py CAMPAIGN HOME [MOMENT …]

A moment is `ROUND:STAGE:before`, `ROUND:STAGE:after` (the commit of that stage), `ROUND:label:N` (after
the N-th record of that round is on disk) or `ROUND:member:N` (after the N-th member is trained). The
modules are imported once and every run is a fork, so that many kills take little time. Ends with an
undisturbed run.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch

import alchemy.tasks as tasks
from alchemy.campaign import run_campaign
from alchemy.config import load_campaign
from alchemy.state import RoundState


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(moment: str) -> None:
    """Patch this (forked) process so that it dies at the moment."""
    number, stage, when = moment.split(":")
    finish = RoundState.finish
    now = {"round": -1, "records": 0, "members": 0}

    def finish_or_die(self, name, outputs, **cost):
        hit = self.number == int(number) and name == stage
        if hit and when == "before":
            die()
        finish(self, name, outputs, **cost)
        if hit and when == "after":
            die()

    def counted(task, key, at):
        def run(request):
            result = task(request)
            now[key] += 1
            if now["round"] == int(number) and now[key] == at:
                die()
            return result

        return run

    opened = RoundState.__init__

    def remember(self, home, which):
        opened(self, home, which)
        if which != now["round"] and not self.stages.get("assess"):
            now.update(round=which, records=0, members=0)

    RoundState.__init__ = remember
    RoundState.finish = finish_or_die
    if stage == "label" and when.isdigit():
        tasks.label = counted(tasks.label, "records", int(when))
    if stage == "member":
        tasks.train_member = counted(tasks.train_member, "members", int(when))


def main() -> None:
    campaign_file, home = Path(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    for moment in [*sys.argv[3:], ""]:
        child = os.fork()
        if child == 0:
            if moment:
                arm(moment)
            trained(home)
            outcome = run_campaign(load_campaign(campaign_file), home, source=campaign_file)
            os._exit(outcome.exit_code)
        _, status = os.waitpid(child, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        if killed != bool(moment) or (not moment and os.WEXITSTATUS(status) != 0):
            sys.exit(f"moment '{moment}': the process ended with status {status}")


def trained(home: Path) -> None:
    """Write down every training that is done, to see that a finished one is not repeated."""
    import alchemy.training as training

    plain = training.train

    def train(request):
        there = Path(request["out"]).with_suffix(".json").exists()
        result = plain(request)
        if not there:
            with open(os.environ["TRAININGS"], "a", encoding="utf-8") as file:
                file.write(f"{Path(request['out']).relative_to(home)}\n")
        return result

    training.train = train


if __name__ == "__main__":
    main()
