"""Labels as batch jobs: pack, submit, watch, collect, and submit again what was not finished.

What a job did is read from the exit record that it writes itself (batch_job.py); what became of the job is
asked of the scheduler, seldom. A job is remembered before it is submitted (batch_ledger.py) and carries a
name that nobody else's has, so that neither a controller that was killed nor an answer that was lost leads
to a second submission. Each job is a row of the pyiron project; without the controller, jobs go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from alchemy import label_claims, tasks
from alchemy.batch_job import EXIT, REVOKED
from alchemy.batch_ledger import OWN_CAUSES, BatchJob, verdicts
from alchemy.config_labels import LabelJobs
from alchemy.errors import EnvironmentProblemError
from alchemy.executors import Interrupt
from alchemy.label_runners import LostLabelError, NotABatchJobError, OnDone, Request
from alchemy.lease import Lease
from alchemy.pyiron_desk import Desk, Watch
from alchemy.pyiron_jobs import label_key_of
from alchemy.pyiron_project import LEASE
from alchemy.pyiron_queue import QueueFullError, UnreachableError, checked_directory
from alchemy.records import FILE_NAME, read_json
from alchemy.scheduler_states import Ending, Seen

LOOK_S, ASK_S = (0.3, 5.0), (1.0, 30.0)  # how often files and the scheduler are looked at: at first, at last
BACK_OFF_S = (5.0, 300.0)  # between tries while the scheduler does not answer
SUBMIT_S = 10.0  # jobs are submitted for so long, then looked at
GRACE_S = 5.0  # a file system may show the last file of a job later than the scheduler its end
NEVER_SEEN_S = 30.0  # a submission without an answer that has not shown up by then has not happened
PATIENCE_S = 30.0  # a node that comes back may turn a hopeless job into a waiting one
START_FAILURES = 2  # jobs in a row that end before our program begins
OUTPUT, LINES = "job.out", 6
ORDINARY = ("", "Priority", "Resources", "None", "BeginTime")  # reasons to wait that need no words


class BatchLabels:
    """Labels: `begin` whenever some are asked for, `step` while it is `busy`, then `close`. One thread's."""

    def __init__(
        self,
        folder: Path,
        *,
        jobs_of: Callable[[str], LabelJobs],
        base_dir: Path,
        say: Callable[[str], None],
        interrupt: Interrupt,
    ) -> None:
        checked_directory(folder)
        self.interrupt = interrupt
        self.lease = Lease(folder / LEASE)
        self.lease.__enter__()
        try:
            self.desk = Desk(folder, jobs_of=jobs_of, base_dir=base_dir, say=say)
        except BaseException:
            self.lease.__exit__(None, None, None)
            raise
        self.wanted: dict[str, Request] = {}
        self.places: dict[str, list[tuple[OnDone, int]]] = {}  # who asked for a key, and its place there
        self.waiting: dict[str, list[str]] = {}  # by fidelity
        self.longest_s: dict[str, float] = {}
        self.start_failures = 0
        self.told: set[str] = set()
        self.back_off_s, self.ask_every_s, self.look_every_s = 0.0, ASK_S[0], LOOK_S[0]
        self.ask_at = self.submit_at = self.last_label_at = 0.0

    @property
    def busy(self) -> bool:
        """Labels are still to come, or a job that has done its part is about to end."""
        if self.wanted:
            self.last_label_at = time.monotonic()
            return True
        ending = any(watch.record for watch in self.desk.watches.values())
        return ending and time.monotonic() - self.last_label_at < 2 * GRACE_S

    def begin(self, requests: Sequence[Request], on_done: OnDone) -> None:
        """Take the requests; what is recorded, under way or wanted already is not submitted."""
        fresh: dict[str, Request] = {}
        for index, request in enumerate(requests):
            key = request.get("key") or label_key_of(request)
            self.places.setdefault(key, []).append((on_done, index))
            if key not in self.wanted:
                fresh[key] = {**request, "base_dir": str(Path(request["base_dir"]).resolve())}
        self.wanted |= fresh
        self.look_every_s = LOOK_S[0]
        under_way = {key for job in self.desk.ledger.jobs.values() for key in job.keys}
        for key, request in fresh.items():
            if not self._take(key) and key not in under_way:
                self.waiting.setdefault(request["fidelity"], []).append(key)

    def forget(self, on_done: OnDone) -> None:
        """Who asked with this wants nothing any more; jobs that are there go on."""
        for key, places in list(self.places.items()):
            self.places[key] = [place for place in places if place[0] != on_done]
            if not self.places[key]:
                del self.places[key], self.wanted[key]
        self.waiting = {f: [k for k in keys if k in self.wanted] for f, keys in self.waiting.items()}

    def step(self) -> None:
        """Look at everything that is due; never waits.

        Raises:
            EnvironmentProblemError: what no waiting will mend, in the words of the job or the scheduler.
        """
        for job in list(self.desk.ledger.jobs.values()):
            self._look(job)
        if self.desk.ledger.jobs and time.monotonic() >= self.ask_at:
            self._ask()
        if time.monotonic() >= self.submit_at:
            self._submit()

    def wait(self) -> None:
        """Until the next look; an interrupt is noticed."""
        if self.interrupt.is_set() and self.desk.ledger.jobs:
            self.desk.say(f"{len(self.desk.ledger.jobs)} batch jobs go on; the same command collects them")
        self.interrupt.raise_if_set()
        time.sleep(self.look_every_s)
        self.look_every_s = min(1.2 * self.look_every_s, LOOK_S[1])

    def close(self) -> None:
        """Let the project go; jobs stay where they are."""
        self.desk.project.close()
        self.lease.__exit__(None, None, None)

    # what jobs say of themselves

    def _look(self, job: BatchJob) -> None:
        watch = self.desk.watches[job.name]
        try:
            stamp = (watch.directory / EXIT).stat().st_mtime_ns
        except FileNotFoundError:
            return
        if stamp == watch.stamp:
            return
        record = watch.record = read_json(watch.directory / EXIT)
        self.look_every_s = LOOK_S[0]
        if job.state != "running":
            self._set(job, "running", job.word)
            self.desk.project.running(job.name)
        complete = True
        for line in record["labels"]:
            if line["state"] == "finished" and line["key"] in self.wanted:
                if line.get("wall_s"):
                    self.longest_s[job.fidelity] = max(self.longest_s.get(job.fidelity, 0.0), line["wall_s"])
                complete &= self._take(line["key"])
        if not complete:
            watch.incomplete_since = watch.incomplete_since or time.monotonic()
            if time.monotonic() - watch.incomplete_since < GRACE_S:
                return  # a label's record is not to be seen yet: look again
        watch.stamp, watch.incomplete_since = stamp, None
        if record["reason"] in ("problem", "os-error"):
            self._problem(job, record)
        elif record["reason"] == "signal" or (record["reason"] and _any_died(record)):
            self.ask_at = 0.0  # why, only the scheduler knows: cancelled, preempted, out of memory
        elif record["reason"]:
            self._conclude(job, "completed", record["reason"])

    def _problem(self, job: BatchJob, record: dict[str, Any]) -> None:
        """What is wrong for all labels ends the call; one of an earlier call may be mended by now."""
        from alchemy import errors

        recovered = self.desk.watches[job.name].recovered
        self._conclude(job, "completed", record["message"])
        if recovered:
            return
        kind = getattr(errors, record.get("kind") or "", EnvironmentProblemError)
        text = f"batch job {job.name} on {record['host']}: {record['message']}"
        if record["reason"] == "os-error":
            text += "; make room (or raise the quota), and the same command continues"
        self.desk.give_up(kind(text))

    # what the scheduler says of them

    def _ask(self) -> None:
        try:
            seen = self._seen()
        except UnreachableError as error:
            return self._unreachable(str(error))
        if self.back_off_s:
            self.desk.say("the scheduler answers again")
            self.back_off_s, self.desk.ledger.unreachable_unix_s = 0.0, None
            self.desk.ledger.save()
        now = time.monotonic()
        for job in list(self.desk.ledger.jobs.values()):
            found = seen.get(job.name)
            if found is None:
                self._missing(job, now)
            elif found.state == "ended":
                self._over(job, found, now)
            else:
                self._alive(job, found, now)
        self.ask_at = now + self.ask_every_s
        self.ask_every_s = min(1.5 * self.ask_every_s, ASK_S[1])
        return None

    def _seen(self) -> dict[str, Seen]:
        found: dict[str, Seen] = {}
        for where in {job.where for job in self.desk.ledger.jobs.values()}:
            own = {job.name: job.id for job in self.desk.ledger.jobs.values() if job.where == where}
            found.update(self.desk.queue(where).look(own))
        return found

    def _unreachable(self, why: str) -> None:
        """Wait longer each time; jobs are not lost by it."""
        self.back_off_s = min(max(2 * self.back_off_s, BACK_OFF_S[0]), BACK_OFF_S[1])
        self.desk.say(f"the scheduler does not answer ({why}); asking again in {self.back_off_s:.0f} s")
        self.ask_at = self.submit_at = time.monotonic() + self.back_off_s
        self.desk.ledger.unreachable_unix_s = self.desk.ledger.unreachable_unix_s or time.time()
        for job in self.desk.ledger.jobs.values():
            job.state = "unknown" if job.id else job.state
        self.desk.ledger.save()

    def _alive(self, job: BatchJob, found: Seen, now: float) -> None:
        watch = self.desk.watches[job.name]
        watch.missing_since = None
        if not job.id:  # submitted, and the answer was lost
            job.id = found.id
            self.desk.project.submitted(job.name, found.id)
        state = "running" if watch.record else found.state
        if (state, found.word) != (job.state, job.word):
            if state == "running" != job.state:
                self.desk.project.running(job.name)
            self._set(job, state, found.word)
        if not found.hopeless:
            watch.hopeless_since = None
            self._tell_why_it_waits(found)
            return
        watch.hopeless_since = watch.hopeless_since or now
        if now - watch.hopeless_since >= PATIENCE_S:
            self.desk.give_up(
                EnvironmentProblemError(
                    f"batch job {found.id} ({job.name}) will never start: {job.where} says {found.word}; "
                    f"change what run.labels asks for '{job.fidelity}' (partition, nodes, tasks, memory, "
                    "walltime, account). Jobs that had not begun were cancelled; nothing finished is lost"
                )
            )

    def _tell_why_it_waits(self, found: Seen) -> None:
        reason = found.word.partition("(")[2].rstrip(")")
        if found.state == "queued" and reason not in ORDINARY and found.word not in self.told:
            self.told.add(found.word)
            self.desk.say(f"batch job {found.id} waits: {found.word}")

    def _missing(self, job: BatchJob, now: float) -> None:
        """Not in the queue: over and forgotten, or never submitted."""
        watch = self.desk.watches[job.name]
        watch.missing_since = watch.missing_since or now
        self.ask_every_s = ASK_S[0]
        if job.id or watch.record:
            if now - watch.missing_since >= GRACE_S:
                self._conclude(job, "unknown", "the scheduler does not know it any more")
        elif now - watch.missing_since >= NEVER_SEEN_S:
            (watch.directory / REVOKED).touch()  # should it come all the same
            self._conclude(job, "cancelled", "the submission did not reach the scheduler", free=True)

    def _over(self, job: BatchJob, found: Seen, now: float) -> None:
        watch = self.desk.watches[job.name]
        job.id = job.id or found.id
        watch.over_since = watch.over_since or now
        self.ask_every_s = ASK_S[0]
        told = watch.record is not None and watch.record["reason"]
        if told or now - watch.over_since >= GRACE_S:
            self._conclude(job, found.ending, found.word)

    # the end of a job

    def _conclude(self, job: BatchJob, ending: Ending, word: str, *, free: bool = False) -> None:
        """The job is dead: its claims are void, its labels are taken, charged, or wait again."""
        watch = self.desk.watches.pop(job.name)
        del self.desk.ledger.jobs[job.name]
        self.desk.ledger.ended["not submitted" if free else ending] += 1
        root = Path(job.root)
        label_claims.release(root, job.keys, job.name)
        jobs = self.desk.jobs_of(job.fidelity)
        causes = verdicts(job.keys, watch.record, ending, walltime_s=jobs.walltime_s)
        left = [key for key in job.keys if not (root / key / FILE_NAME).is_file()]
        for key in job.keys:
            if key not in left:
                self._take(key)
            elif key in self.wanted:
                self._free_if_orphaned(root, key, job.where)
                self._again(key, "" if free else causes[key], job=job, word=word)
        self.desk.ledger.save()
        outputs = {
            "ending": ending,
            "word": word,
            "finished": [key for key in job.keys if key not in left],
            "left": left,
        }
        self.desk.project.ended(job.name, outputs, aborted=ending != "completed")
        if watch.record is None and not free and ending in ("completed", "failed", "unknown"):
            self._failed_to_start(job, watch, word)
        elif watch.record is not None:
            self.start_failures = 0

    def _again(self, key: str, cause: str, *, job: BatchJob, word: str) -> None:
        """Wait for the next job, or be given up."""
        fidelity = self.wanted[key]["fidelity"]
        jobs = self.desk.jobs_of(fidelity)
        if not jobs.batch:
            return self._answer(key, NotABatchJobError())
        if cause:
            own, machine = self.desk.ledger.charge(key, cause, job=job, word=word)
            if own > jobs.retries or machine > jobs.resubmissions:
                lines = self.desk.ledger.tries.pop(key)
                story = ", ".join(f"{line['cause']} in job {line['id']}" for line in lines)
                return self._answer(key, LostLabelError(cause, f"{len(lines)} tries: {story} ({word})"))
            self.desk.say(f"label {key[:8]} ({fidelity}): {cause} in batch job {job.id} ({word}); once more")
        self.waiting.setdefault(fidelity, []).append(key)
        return None

    def _free_if_orphaned(self, root: Path, key: str, where: str) -> None:
        """A claim whose job nobody knows (a ledger that was deleted) would stand for ever."""
        holder = label_claims.holder_of(root, key)
        if not holder or holder in self.desk.ledger.jobs:
            return
        try:
            found = self.desk.queue(where).look({holder: ""})
        except UnreachableError:
            return
        if holder not in found or found[holder].state == "ended":
            label_claims.release(root, [key], holder)

    def _failed_to_start(self, job: BatchJob, watch: Watch, word: str) -> None:
        self.start_failures += 1
        output = watch.directory / OUTPUT
        said = output.read_text("utf-8", "replace").strip().splitlines()[-LINES:] if output.is_file() else []
        text = f"batch job {job.id} ({job.name}) ended before its first label ({word}): " + (
            "\n".join(said)
            or f"it wrote nothing to {output}; is the disk full, or the folder not there on the node?"
        )
        if self.start_failures < START_FAILURES or watch.recovered:
            self.desk.say(text)
            return
        self.desk.give_up(EnvironmentProblemError(f"{text}\nsee {watch.directory}, and run.labels.setup"))

    def _take(self, key: str) -> bool:
        """Hand a finished label over, once; False if its record is not there."""
        if key in self.wanted:
            root = Path(self.wanted[key]["root"])
            if not (root / key / FILE_NAME).is_file():
                return False
            record = tasks.read_label(root, key)
            self._answer(key, {"key": key, "status": record.status, "reason": record.reason})
        self.desk.ledger.tries.pop(key, None)
        return True

    def _answer(self, key: str, result: dict[str, Any] | BaseException) -> None:
        del self.wanted[key]
        for on_done, index in self.places.pop(key):
            on_done(index, result)

    def _set(self, job: BatchJob, state: str, word: str) -> None:
        job.state, job.word = state, word
        self.desk.ledger.save()

    # new jobs

    def _submit(self) -> None:
        until = time.monotonic() + SUBMIT_S
        for fidelity, keys in self.waiting.items():
            jobs = self.desk.jobs_of(fidelity)
            alive = sum(job.fidelity == fidelity for job in self.desk.ledger.jobs.values())
            while keys and alive < jobs.jobs and time.monotonic() < until:
                self.interrupt.raise_if_set()
                size = 1 if self._risky(keys[0]) else jobs.pack
                pack = [keys[0], *(k for k in keys[1:size] if not self._risky(k))]
                self.waiting[fidelity] = keys = [k for k in keys if k not in pack]
                try:
                    self._hand_in(fidelity, pack)
                except UnreachableError as error:
                    return self._unreachable(str(error))  # it waits in the ledger for its name to show up
                except QueueFullError as error:
                    self.waiting[fidelity] = [*pack, *keys]
                    self.submit_at = time.monotonic() + 2 * ASK_S[1]
                    if str(error) not in self.told:
                        self.told.add(str(error))
                        self.desk.say(f"{error}; going on with the jobs that are there")
                    return None
                alive += 1
        return None

    def _risky(self, key: str) -> bool:
        """It has taken a job down before, so it gets one of its own."""
        return any(line["cause"] in OWN_CAUSES for line in self.desk.ledger.tries.get(key, ()))

    def _hand_in(self, fidelity: str, keys: list[str]) -> None:
        expected = {f: s for f, s in self.longest_s.items() if f == fidelity}
        self.desk.submit(fidelity, {key: self.wanted[key] for key in keys}, expected)
        self.ask_every_s = ASK_S[0]
        self.ask_at = min(self.ask_at, time.monotonic() + ASK_S[0])


def _any_died(record: dict[str, Any]) -> bool:
    return any(line["state"] == "died" for line in record["labels"])
