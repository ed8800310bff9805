"""The best set within a time and a budget: try methods and their dials, distil the best one, score it beside controls.

`budget.bytes=200kB hours=2`: experts, short trials of which the better half goes on, the winner with the time that is left,
its scores. Started again, the same line goes on, and uses no more than its hours in sum; more hours may be given. OUT/auto
has what was tried and a page; the set itself is OUT/artifact.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from jobs import program, stage
from jobs.compose import Asked, ask, command

if TYPE_CHECKING:
    from rayd.config import Run
    from rayd.run.rows import RowTask
    from rayd.studies.auto.clock import Clock
    from rayd.studies.auto.rungs import Search
    from rayd.studies.auto.shares import Pace
    from rayd.studies.auto.space import Family
    from rayd.studies.search.points import Trial

BEGAN = time.monotonic()
KEYS = "rayd.studies.auto.space:AutoKeys"
OWN = "hours=", "auto."  # how the verb's own keys begin
INTERRUPTED = 130  # a shell's code of a command that Ctrl-C ended
PROBE = 0.01, 20.0
"""Share of the time that the plan's probe takes, and its most seconds."""


def act(asked: Asked) -> int:
    from rayd.errors import require
    from rayd.store import Lease, Store
    from rayd.studies.auto.clock import Clock

    require("report", program("auto"))
    store = Store(asked.run.out).sub("auto")
    if not store.exists("outcome.json"):
        with Lease(store), Clock(store, 3600 * asked.own.hours, BEGAN) as clock:
            try:
                Stages(asked, clock).run()
            except KeyboardInterrupt:
                say(f"{clock.used:.0f} of {clock.seconds:.0f} s used; the same command goes on")
                return INTERRUPTED
    outcome = store.read_json("outcome.json")
    print(
        f"{outcome['text']}\npage: {store.where('index.html')}\nagain: {outcome['line']}\nnext: {asked.line('export')}"
    )
    return 0


def say(text: str) -> None:
    print(f"rayd: {text}", file=sys.stderr, flush=True)


@dataclass
class Stages:
    """The stages of one command. Each finds what an earlier start has left."""

    asked: Asked
    clock: Clock

    def run(self) -> None:
        families = self.families()
        self.plan(families)
        run, trial = self.winner(self.experts(families))
        self.conclude(self.scored(run), trial)

    @cached_property
    def spec(self) -> Any:
        from rayd.data.load import load

        return load(self.asked.run.data).train.spec

    @property
    def inline(self) -> bool:
        return self.asked.run.scale.name == "inline"

    @property
    def end(self) -> float:
        """Of the clock: all is done by then."""
        from rayd.studies.auto.shares import SLACK

        return self.clock.seconds * (1 - SLACK)

    @cached_property
    def search(self) -> Search:
        from rayd.studies.auto.rungs import Search

        run = self.asked.run
        if self.inline:
            return Search(
                self.clock.store, self.clock, lambda work, legs: ((leg, work(run, leg)) for leg in legs), 1, say
            )
        from rayd.fleet import cluster
        from rayd.fleet.tasks import run_tasks

        cluster.start(run.scale)
        slots = max(1, cluster.room(cluster.bundle(run.scale), run.scale.selector("search")))
        return Search(self.clock.store, self.clock, lambda work, legs: run_tasks(run, "search", work, legs), slots, say)

    # ---- what is tried -----------------------------------------------------------------------------------------------

    def families(self) -> list[Family]:
        """Every method that can be tried beside the others; the reasons of the others are kept."""
        from rayd.choices import options, places
        from rayd.errors import Refused, refuse
        from rayd.schema import to_dict
        from rayd.studies.auto.space import family_of, ranked, unfit

        base, config, words = self.asked.run, self.asked.own.auto, self.asked.words
        named = [word.partition("=")[2] for word in words if word.startswith("method=")] or list(config.families)
        names = named or sorted({name for place in places(base.methods) for name in options("method", place)})
        rest = tuple(word for word in words if not word.startswith("method="))
        found: dict[str, Family] = {}
        self.absent: dict[str, str] = {}
        for name in names:
            try:
                run = ask("auto", (*rest, f"method={name}"), KEYS).run
                why = unfit(run, base)
                if not why:
                    found[name] = family_of(name, run, config, self.spec)
            except Refused as refusal:
                why = str(refusal)
            if why:
                self.absent[name] = why
        if not found:
            raise refuse("auto.families", names, "methods that fit", next(iter(self.absent.values())))
        keys = self.clock.store.claim(
            "asked.json", {"base": base.fingerprint(), "recipe": to_dict(base.recipe), "auto": to_dict(config)}
        )
        if keys:
            raise Refused(f"out={base.out}: holds what another line began ({', '.join(keys)} differ); give another out")
        order = list(found) if named else ranked({name: one.run.method.part_names for name, one in found.items()})
        return [found[name] for name in order]

    # ---- the plan ----------------------------------------------------------------------------------------------------

    def plan(self, families: Sequence[Family]) -> None:
        """Measure the pace once; shorten the recipe where its networks take too long; refuse a time that holds nothing."""
        from rayd.errors import refuse
        from rayd.numbers import duration
        from rayd.studies.auto.shares import FEWEST_STEPS, VALIDATING, least, recipe_share

        store, config, recipe = self.clock.store, self.asked.own.auto, self.asked.run.recipe
        pace = self.pace(families)
        free = recipe.steps is not None and not any(word.startswith("recipe") for word in self.asked.words)
        shortest = pace.recipe(min(1.0, FEWEST_STEPS / recipe.steps)) if free and recipe.steps else pace
        needed = least(shortest) + self.clock.used
        if not store.exists("recipe.json"):
            if needed > self.clock.seconds:
                takes = f"at least {-(-needed // 36) / 100:.2f} on this machine"
                do = "a smaller net.width or data.size needs less"
                raise refuse("hours", self.asked.own.hours, f"{takes}: a trial alone and its score take that", do)
            seconds = self.clock.seconds
            share = recipe_share(pace, config.scoring * seconds, VALIDATING * seconds) if free else 1.0
            steps = max(FEWEST_STEPS, int(share * recipe.steps)) if recipe.steps and share < 1 else recipe.steps
            store.write_json("recipe.json", {"steps": steps})
        steps = store.read_json("recipe.json")["steps"]
        if steps != recipe.steps:
            say(f"recipe.steps={steps}: the networks of the table fit the time (the recipe has {recipe.steps})")
        self.recipe = replace(recipe, steps=steps)
        self.real = pace.recipe(steps / recipe.steps if steps else 1.0).real
        self.clock.mark("plan")
        say(f"planned in {duration(self.clock.used)} of {duration(self.clock.seconds)}")

    def pace(self, families: Sequence[Family]) -> Pace:
        from rayd.schema import parse, to_dict
        from rayd.studies.auto.shares import Pace
        from rayd.studies.auto.space import at
        from rayd.studies.plan import plan, stages
        from rayd.studies.plan.probe import request, run_stage

        store = self.clock.store
        if not store.exists("pace.json"):
            first = next((one for one in families if one.run.method.reads_experts), families[0])
            run = at(first.run, first.point)
            run = replace(run, expert=replace(run.expert, experts=run.expert.per_shard))
            seconds = min(PROBE[0] * self.clock.seconds, PROBE[1])
            here = {name: run_stage(request(run, name, seconds)) for name in stages(run)} if self.inline else None
            measured = here or stage("plan", run).measure(run, seconds)
            costs = plan(run, seconds, lambda *_: measured)
            say("\nrayd: ".join(costs.lines()))
            images = costs.ledger.bytes / self.spec.floats, min(run.recipe.batch, costs.data.train)
            store.write_json("pace.json", to_dict(Pace.of(costs.seconds.get("experts", 0.0), measured, *images)))
        return parse(Pace, store.read_json("pace.json"))

    # ---- experts -----------------------------------------------------------------------------------------------------

    def experts(self, families: Sequence[Family]) -> list[Family]:
        """As many experts as fit their share, up to the last epoch that any method matches; the families with them."""
        from rayd.run.assemble import last_matched

        base = self.asked.run
        expert, readers = base.expert, [one.run for one in families if one.run.method.reads_experts]
        lasts = [last for run in readers if (last := last_matched(run)) is not None]
        if lasts and expert.schedule == "constant":
            expert = replace(expert, epochs=max(lasts), keep="all")
        if readers:
            longest = max(readers, key=lambda run: last_matched(run) or 0)
            expert = self.trained(replace(base, method=longest.method, expert=expert)).expert
        self.clock.mark("experts")
        recipe, buffer = self.recipe, base.experts_at
        return [replace(one, run=replace(one.run, expert=expert, recipe=recipe, buffer=buffer)) for one in families]

    def trained(self, run: Run) -> Run:
        from jobs.console import Line
        from rayd.api import work
        from rayd.errors import Failed
        from rayd.run.experts import ExpertPlan

        store, until, line = self.clock.store, self.asked.own.auto.experts * self.clock.seconds, Line()
        if not store.exists("experts.json"):
            took = 0.0
            for progress in work.trained(run):
                line.show(f"experts  {progress.line()}")
                took = progress.last.seconds if progress.last else took
                if progress.skipped + progress.done and self.clock.used + (took if self.inline else 0.0) > until:
                    break
            todo, _, _ = ExpertPlan.open(run).pending()
            count = todo[0].experts[0] if todo else run.expert.experts
            if not count:
                raise Failed("experts: the first one diverged or was not finished; lower expert.lr")
            store.write_json("experts.json", {"experts": count})
            say(f"{count} experts of {run.expert.epochs} epochs")
        run = replace(run, expert=replace(run.expert, experts=int(store.read_json("experts.json")["experts"])))
        for _ in work.trained(run):
            pass
        return run

    # ---- trials ------------------------------------------------------------------------------------------------------

    def winner(self, families: Sequence[Family]) -> tuple[Run, Trial]:
        """Pilots, rungs, and the run that the last trial is the beginning of."""
        from jobs.distill import distilled
        from rayd.studies.auto.legs import ended, interrupted

        end = self.end - self.asked.own.auto.scoring * self.clock.seconds
        entrants = self.entrants(families, end)
        self.trials = {trial.number: trial for trial in entrants["trials"]}
        number = self.search.trials(self.trials, entrants["sizes"], end, self.search.piloted())
        trial, last = self.trials[number], self.search.reached()[number][-1]
        every = self.clock.store.read_json("rungs/0.json")["every"][str(number)]
        run = ended(interrupted(trial.run, self.search.at(number), every), self.asked.run.out, last.step)
        distilled(replace(self.asked, run=run))
        self.clock.mark("trials and winner")
        return run, trial

    def entrants(self, families: Sequence[Family], end: float) -> dict[str, Any]:
        """The trials, and how many each rung has: decided once."""
        from rayd.errors import Failed
        from rayd.studies.auto.shares import rungs
        from rayd.studies.auto.space import points, trial_of

        store, clock, config = self.clock.store, self.clock, self.asked.own.auto
        by_name = {family.name: family for family in families}
        if not store.exists("entrants.json"):
            pilots = self.search.pilots(families, clock.used + config.pilots * (end - clock.used))
            fit = {name: pilot for name, pilot in pilots.items() if not pilot.refused}
            if not fit:
                raise Failed(f"no method works here; {next(iter(pilots.values())).refused}")
            best = sorted((by_name[name] for name in fit), key=lambda family: -fit[family.name].accuracy)
            sizes = rungs(end - clock.used, fit, self.search.slots, config.trials)
            chosen = list(points(best, sizes[0], self.asked.run.seed, self.spec))
            clock.mark("pilots")
            store.write_json("entrants.json", {"sizes": sizes, "points": [trial.point for trial in chosen]})
            say(f"{len(chosen)} trials, {' > '.join(map(str, sizes))} in a rung")
        plan = store.read_json("entrants.json")
        listed = [trial_of(by_name, number, point, self.spec) for number, point in enumerate(plan["points"])]
        return {"trials": listed, "sizes": plan["sizes"]}

    def line(self, run: Run, trial: Trial) -> str:
        from rayd.studies.auto.outcome import again

        return again(program("pipeline"), self.asked.words, OWN, run, trial)

    # ---- scores ------------------------------------------------------------------------------------------------------

    def scored(self, run: Run) -> Run:
        """As many networks and controls as the time holds, then the table, once."""
        from rayd.api.work import scored
        from rayd.artifact.load import load
        from rayd.run.rows import row_tasks
        from rayd.studies.auto.scoring import fitting

        store, at, controls = self.clock.store, run.at("artifact"), self.asked.own.auto.controls
        if not store.exists("scoring.json"):
            tasks = row_tasks(run, load(at, run.methods), controls)
            answers = self.answers(run, at)
            fitted, rows = fitting(run, tasks, self.clock, self.end, answers, self.search.slots, self.real, self.spec)
            store.write_json("scoring.json", {"seeds": fitted.recipe.seeds, "controls": rows})
        plan = store.read_json("scoring.json")
        run = replace(run, recipe=replace(run.recipe, seeds=int(plan["seeds"])))
        scored(run, at, tuple(plan["controls"]))
        self.clock.mark("scores")
        return run

    def answers(self, run: Run, at: str) -> Callable[[Sequence[RowTask]], Iterable[tuple[RowTask, Any]]]:
        from rayd.run.rows import Scorer, attempt, score_task

        if self.inline:
            scorer = Scorer.of(run, at)
            return lambda tasks: ((task, attempt(scorer.answer, task)) for task in tasks)
        from rayd.fleet.tasks import run_tasks

        return lambda tasks: run_tasks(run, "evaluate", score_task, tasks, at)

    def conclude(self, run: Run, trial: Trial) -> None:
        """The page of the set, the table and page of what was tried."""
        from jobs.evaluate import table
        from jobs.report import reported
        from rayd.studies.auto.outcome import conclude, note

        line = self.line(run, trial)
        note(run, trial, len(self.trials), self.clock.seconds, line)
        reported(replace(self.asked, run=run))
        self.clock.mark("pages")
        scores = table(run.at("artifact"))
        conclude(self.search, self.trials, trial, self.absent, scores, line)


if __name__ == "__main__":
    sys.exit(command("auto", __doc__, act, KEYS))
