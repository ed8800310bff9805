"""Trials under Ray Tune: rayd.studies.search plans and decides; Tune places the trials and restarts lost ones.

A trial of one worker is a Tune function that distils in its own process. A trial of several is a driver of a Ray Train job
that reserves no CPU, for which its own workers would wait. Tune's state is never read back: the table of trials says which
have ended, and a search that goes on hands the rest to Tune.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Mapping
from typing import Any

os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")

import ray
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from rayd.config import Run
from rayd.errors import Failed, Refused, refuse
from rayd.fleet import cluster, distill
from rayd.fleet.watch import Pulse, Watch, beating
from rayd.machine import beat, use_threads
from rayd.schema import parse, to_dict
from rayd.seeds import seed_of
from rayd.store import configure
from rayd.studies.search.asha import Halving
from rayd.studies.search.points import ATTEMPTS, Trial, make
from rayd.studies.search.space import FAMILY, Dial, Point, SearchConfig
from rayd.studies.search.trials import TrialRow, TrialTable, advance, curve_of, line, score, seeded

log = logging.getLogger(__name__)
logging.getLogger("ray.tune").setLevel(logging.ERROR)

METRIC = "val"
TRIFLE = 1 << 20
"""Bytes of memory that stand for a driver which takes no CPU: an empty bundle is refused by Ray."""


# ---- in a trial's process --------------------------------------------------------------------------------------------


def alone(config: Mapping[str, Any]) -> None:
    """A trial of one worker. A final error is reported, not raised: Tune would try it again."""
    run, search = parse(Run, config["run"]), parse(SearchConfig, config["search"])
    use_threads(run.scale.threads)
    configure(run.store)
    try:
        with beating(Pulse(**config["pulse"]), f"trial {config['number']}"):
            for step, value in advance(run, search):
                beat(f"step {step}")
                tune.report({"step": step, METRIC: value})
            score(run, search)
    except (Refused, Failed) as error:
        tune.report({"step": 0, METRIC: 0.0, "failed": str(error)})


def _score(pulse: Pulse, group: str, run: Run, search: SearchConfig) -> None:
    with beating(pulse, group):
        score(run, search)


class Milestones(TuneReportCallback):
    """Reports each milestone in the run's own store to Tune; Train's workers report more often."""

    def __init__(self, run: Run, search: SearchConfig) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.run, self.search, self.reported = run, search, 0

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        for step, value in curve_of(self.run, self.search):
            if step > self.reported:
                self.reported = step
                super().after_report(run_context, [{"step": step, METRIC: value}], None)


def together(config: Mapping[str, Any]) -> None:
    """A trial of several workers: a Ray Train job, whose workers go on from the run's own checkpoints."""
    run, search = parse(Run, config["run"]), parse(SearchConfig, config["search"])
    need, inner = cluster.bundle(run.scale), seeded(run, search)[0]
    distill.limit_waits(run.scale)
    pulse, group = Pulse(**config["pulse"]), f"trial {config['number']}"
    trainer = distill.trainer(inner, pulse, group, search.every, (Milestones(run, search),), "search")
    try:
        trainer.fit()
        curve = curve_of(run, search)
        tune.report({"step": curve[-1][0], METRIC: curve[-1][1]})
        task: Any = ray.remote(**cluster.task_options(need, run.scale.selector("search")))
        ray.get(task(_score).remote(pulse, group, run, search))
    except (Refused, Failed) as error:
        tune.report({"step": 0, METRIC: 0.0, "failed": str(error)})


# ---- in the driver ---------------------------------------------------------------------------------------------------


class AshaScheduler(FIFOScheduler):
    """Stops a trial when the rungs say so."""

    def __init__(self, halving: Halving, budgets: Mapping[int, str], last: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.halving, self.budgets, self.last = halving, budgets, last
        self.stopped: set[int] = set()

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        number, step = int(trial.config["number"]), int(result["step"])
        if "failed" in result or step >= self.last:
            return str(TrialScheduler.CONTINUE)
        if self.halving.survives(self.budgets[number], number, step, float(result[METRIC])):
            return str(TrialScheduler.CONTINUE)
        self.stopped.add(number)
        return str(TrialScheduler.STOP)


class Bound(tune.Callback):
    """Tune waits for ever for what it cannot place."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        limit = self.watch.scale.startup
        if self.watch.quiet > limit:
            raise Failed(
                f"search: no trial was placed within scale.startup={limit:g} s; trials that have ended are kept: raise "
                "it and run the same command again"
            )


class Proposals(Searcher):
    """Hands out the trials that have not ended, in order, then Optuna's proposals; writes each end into the table."""

    def __init__(
        self,
        book: TrialTable,
        todo: list[Trial],
        cut: AshaScheduler,
        budgets: dict[int, str],
        tpe: OptunaSearcher | None,
        watch: Watch,
    ) -> None:
        super().__init__(metric=METRIC, mode="max")
        self.watch, self.pulse = watch, vars(watch.pulse)
        self.book, self.todo, self.cut, self.budgets, self.tpe = book, list(todo), cut, budgets, tpe
        self.live: dict[str, Trial] = {}

    def suggest(self, trial_id: str) -> Any:
        if self.todo:
            trial: Trial | None = self.todo.pop(0)
        else:
            trial = self.tpe.ask() if self.tpe else None
        if trial is None:  # one at work may come back with a node that is taken away
            return None if self.live else Searcher.FINISHED
        self.live[trial_id] = trial
        self.budgets[trial.number] = trial.budget
        return {
            "number": trial.number, "run": to_dict(trial.run), "search": to_dict(self.book.config), "pulse": self.pulse,
        }  # fmt: skip

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        trial, result = self.live.pop(trial_id), result or {}
        if error and self.watch.taken(f"trial {trial.number}"):
            log.warning("trial %d: its node was taken away; it is handed out again", trial.number)
            self.todo.append(trial)
            return
        if "failed" in result:
            record = self.book.fail(trial, str(result["failed"]))
        elif error:
            tries = self.book.base.scale.max_failures + 1
            record = self.book.fail(trial, f"its worker was lost {tries} times (scale.max_failures)")
        elif trial.number in self.cut.stopped:
            record = self.book.stop(trial)
        else:
            record = self.book.finish(trial)
        if self.tpe:
            self.tpe.tell(record)
        log.info("%s", line(record))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the table has it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see `save`."""


class OptunaSearcher:
    """Optuna's tree of Parzen estimators through Ray, over one flat space; it learns every end from the table."""

    def __init__(self, book: TrialTable, count: int) -> None:
        self.book, self.count = book, count
        config = book.config
        self.space: dict[str, Any] = {FAMILY: tune.choice(list(config.names))} if len(config.names) > 1 else {}
        for name in config.names:
            self.space |= {f"{name}:{path}": domain(dial) for path, dial in config.dials(name).items()}
        space = OptunaSearch.convert_search_space(self.space)
        self.optuna = OptunaSearch(space=space, metric=METRIC, mode="max", seed=seed_of(book.base.seed, "tpe") % 2**31)
        self.names: dict[int, str] = {}
        earlier = book.proposed()
        ended = {record.number: record for record in book.records()}
        self.raws = {number: raw for number, (_, raw) in earlier.items()}
        for number in sorted(ended):
            self.tell(ended[number])
        self.todo = [trial for number, (trial, _) in sorted(earlier.items()) if number not in ended]
        self.next = max(earlier, default=-1) + 1

    def ask(self) -> Trial | None:
        """A new trial, written to the table before it runs; none once there are as many as planned."""
        for _ in range(ATTEMPTS):
            if self.next >= self.count:
                return None
            name = uuid.uuid4().hex
            raw = dict(self.optuna.suggest(name) or {})
            try:
                trial = make(self.book.base, self.book.config, self.book.spec, self.next, self._point(raw))
            except Refused:
                self.optuna.on_trial_complete(name, error=True)
                continue
            self.book.propose(trial, raw)
            self.raws[trial.number], self.names[trial.number] = raw, name
            self.next += 1
            return trial
        log.warning(
            "no point that fits the budget in %d proposals: the search ends with %d trials", ATTEMPTS, self.next
        )
        return None

    def _point(self, raw: Mapping[str, Any]) -> Point:
        family = raw.get(FAMILY, self.book.config.names[0])
        point: Point = {FAMILY: family} if family else {}
        for path, dial in self.book.config.dials(family).items():
            value = raw[f"{family}:{path}"]
            point[path] = dial.choices[value] if dial.choices else value
        return point

    def tell(self, record: TrialRow) -> None:
        """Tell Optuna how a trial ended: one that it proposed to this process, or an earlier one."""
        value, name = record.accuracy, self.names.pop(record.number, None)
        if name is not None:
            self.optuna.on_trial_complete(name, {METRIC: value} if value is not None else None, error=value is None)
        elif value is not None and record.number in self.raws:
            self.optuna.add_evaluated_point(self.raws[record.number], value)


def domain(dial: Dial) -> Any:
    """Choices by their index: a value may be a whole mapping."""
    if dial.choices:
        return tune.choice(list(range(len(dial.choices))))
    assert dial.low is not None and dial.high is not None
    if dial.whole:
        return (tune.lograndint if dial.log else tune.randint)(int(dial.low), int(dial.high) + 1)
    return (tune.loguniform if dial.log else tune.uniform)(dial.low, dial.high)


def concurrency(config: SearchConfig, room: int, workers: int, pending: int) -> int:
    """Trials at once: as many as the cluster holds, the config allows, and are left."""
    return max(1, min(room // workers, config.concurrent or room, max(pending, 1)))


def search(book: TrialTable, trials: Mapping[int, Trial]) -> None:
    """Run every trial that has not ended. `trials`: the plan of a random or grid search; empty for TPE."""
    config, scale = book.config, book.base.scale
    if scale.workers > 1 and config.seeds > 1:
        raise refuse("search.seeds", config.seeds, "1 where a trial has several workers", "set scale.workers=1")
    cluster.start(scale)
    need, labels = cluster.bundle(scale), scale.selector("search")
    cluster.require(need, scale.workers, "trial" if scale.workers == 1 else "worker of a trial", scale.wait, labels)
    tpe = OptunaSearcher(book, config.trials) if config.searcher == "tpe" else None
    known = {trial.number: trial for trial, _ in book.proposed().values()} if tpe else dict(trials)
    ended = book.ended()
    todo = [trial for number, trial in sorted(known.items()) if number not in ended]
    left = len(todo) + (max(0, config.trials - tpe.next) if tpe else 0)
    if not left:
        return
    budgets = {number: trial.budget for number, trial in known.items()}
    cut = AshaScheduler(book.halving(known), budgets, config.steps)
    at_once = concurrency(config, cluster.room(need, labels), scale.workers, left)
    log.info("%d trials, %d at once, %d ended before", left, at_once, len(ended))
    chosen: dict[str, Any] = {"bundle_label_selector": [labels]} if labels else {}
    trainable = (
        tune.with_resources(alone, tune.PlacementGroupFactory([dict(need)], **chosen))
        if scale.workers == 1
        else tune.with_resources(together, {"CPU": 0, "memory": TRIFLE})
    )
    with Watch(scale, book.base.out, "search") as watch:
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                num_samples=-1,  # as many as the searcher hands out
                max_concurrent_trials=at_once,
                scheduler=cut,
                search_alg=Proposals(book, todo, cut, budgets, tpe, watch),
                reuse_actors=False,
            ),
            run_config=tune.RunConfig(
                name=f"search-{uuid.uuid4().hex[:8]}",
                storage_path=cluster.train_storage(book.base.out),
                failure_config=tune.FailureConfig(max_failures=scale.max_failures),
                verbose=0,
                callbacks=[Bound(watch)],
            ),
        )
        tuner.fit()
