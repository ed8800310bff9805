from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import rayd
from rayd import numbers
from rayd.artifact.load import self_hash
from rayd.data.images import Spec
from rayd.distill.budget import Budget
from rayd.errors import Refused
from rayd.evaluate import coreset, verdict
from rayd.evaluate.recipe import RecipeConfig
from rayd.evaluate.row import RowName
from rayd.evaluate.score import Score
from rayd.run import evaluate, rows
from rayd.run.evaluate import all_or_enough
from rayd.run.rows import RowTask, Scorer
from rayd.run.verify import verify
from tests.support.runs import an_artifact, small_run


def fails(folder, run, scores=False):
    return [str(one) for one in verify(str(folder), run, scores) if not one.holds]


def reseal(folder, change):
    """What a careful forger would do: change the card and hash it again."""
    card = json.loads((folder / "card.json").read_text())
    change(card)
    card.pop("sha256")
    (folder / "card.json").write_text(json.dumps(card | {"sha256": self_hash(card)}))


def test_herding_follows_the_mean_and_k_centre_spreads():
    points = torch.tensor([[0.0], [1.0], [2.0], [10.0]])
    assert coreset.herding(points, 1).tolist() == [2], "3.25 is the mean: 2 is nearest"
    assert coreset.k_centre(points, 2).tolist() == [2, 3], "then the farthest"
    assert sorted(coreset.herding(torch.randn(9, 4), 9).tolist()) == list(range(9))


def test_controls_hold_no_more_than_the_artifact(tmp_path):
    run = small_run()
    scorer = Scorer(run, rayd.load(an_artifact(tmp_path / "a", run)))
    size = scorer.artifact.ledger
    assert len(scorer.real(RowName("random", "floats"), 0)) == round(size["floats"] / 64) == 3
    raw = scorer.real(RowName("herding", "raw"), 0)
    assert len(raw) * 65 <= size["bytes"] < (len(raw) + 1) * 65
    few = scorer.real(RowName("random", "jpeg"), 0)
    assert few.spec == scorer.train.spec and len(few) >= 3
    assert not torch.equal(scorer.real(RowName("random", "floats"), 0).labels_N.sort()[0], torch.zeros(3))
    assert sorted(scorer.real(RowName("random", "floats"), 1).labels_N.tolist()) == [0, 1, 2]


def test_the_table_the_card_and_the_verdict_when_distillation_loses(tmp_path):
    """Each image under the label of the next class: whatever is real beats it, and the verdict must say so."""
    run = small_run()
    folder = an_artifact(tmp_path / "a", run, images=lambda pixels: pixels.roll(1, 0))
    made = evaluate.score(run, str(folder), ["random@floats", "random@raw", "herding@raw", "start", "full"])
    assert made["verdict"]["overall"] == "no" and made["verdict"]["bytes"] == "no"
    card = rayd.load(folder).card
    assert card["reads"] == 1 and card["claim"]["verdict"] == "no" and "**no**" in (folder / "README.md").read_text()
    by = {row["set"]: row for row in made["rows"]}
    cost = json.loads((folder / "timing.json").read_text())
    assert cost["evaluate_s"] > 0 and cost["evaluate_peak"] > 10 * 2**20
    named = {"distilled", "distilled-8bit", "random@floats", "random@raw", "herding@raw", "start", "full"}
    assert set(by) == named | {"distilled/bare", "random@floats/bare"}
    assert by["full"]["mean"] > by["distilled"]["mean"] and by["distilled"]["n"] == 3
    assert not fails(folder, run, scores=True), "untouched, the claim holds"
    evaluate.score(run, str(folder), [])
    assert rayd.load(folder).card["reads"] == 2


def test_verdicts():
    def row(name, mean, std=0.01, n=5):
        return {"set": name, "mean": mean, "std": std, "n": n}

    own = row("distilled", 0.5)
    assert verdict.verdict([own, row("random@floats", 0.3), row("herding@raw", 0.4)])["overall"] == "yes"
    assert verdict.verdict([own, row("random@floats", 0.3), row("herding@raw", 0.495)])["overall"] == "undecided"
    assert verdict.verdict([own, row("random@floats", 0.3), row("random@jpeg", 0.6)])["bytes"] == "no"
    assert verdict.verdict([own, row("random@floats", 0.3, n=1)])["floats"] == "undecided", "one network proves nothing"
    assert verdict.verdict([own, row("full", 0.9)])["overall"] == "not asked"
    gap, wide = numbers.difference(row("a", 0.5, 0.02, 5), row("b", 0.4, 0.02, 5))
    assert gap == pytest.approx(0.1) and wide == pytest.approx(2.306 * math.sqrt(2 * 0.02**2 / 5), rel=1e-3)


def test_tampering_fails_and_says_where(tmp_path):
    run = small_run()
    folder = an_artifact(tmp_path / "a", run)
    assert not fails(folder, run)
    data = bytearray((folder / "codec.safetensors").read_bytes())
    data[-7] ^= 64
    (folder / "codec.safetensors").write_bytes(bytes(data))
    assert "codec.safetensors" in fails(folder, run)[0]


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda card: card.update(step_size=0.5), "step size"),
        (lambda card: card["data"].update(content="other"), "data are those"),
        (
            lambda card: card["scores"]["distilled/convnet-w8/short"].update(mean=0.99),
            "card and table agree on distilled",
        ),
    ],
)
def test_a_forged_card_is_found_out_by_recomputing(tmp_path, change, where):
    run = small_run()
    folder = an_artifact(tmp_path / "a", run)
    evaluate.score(run, str(folder), [])
    reseal(folder, change)
    assert any(where in one for one in fails(folder, run, scores=True))


def test_a_forged_number_that_hashes_right_is_found_out(tmp_path):
    import hashlib

    run = small_run()
    folder = an_artifact(tmp_path / "a", run)
    ledger = json.loads((folder / "ledger.json").read_text()) | {"floats": 5}
    (folder / "ledger.json").write_text(json.dumps(ledger))
    digest = hashlib.sha256((folder / "ledger.json").read_bytes()).hexdigest()
    reseal(folder, lambda card: card["files"].update({"ledger.json": digest}))
    assert any("ledger counts" in one and "floats" in one for one in fails(folder, run))


def test_a_recipe_that_does_not_fit_is_refused_before_anything_is_written(tmp_path):
    run = small_run(recipe={"labels": "teacher"})
    folder = an_artifact(tmp_path / "a", run)
    before = (folder / "card.json").read_bytes()
    with pytest.raises(Refused, match=r"recipe\.labels=teacher"):
        evaluate.score(run, str(folder))
    assert (folder / "card.json").read_bytes() == before


def test_robust_scores_are_their_formulas(tmp_path):
    """A set equal to what it is compared with gains nothing: 0.269. The full set loses nothing to hard labels."""
    nothing = (1 - math.exp(-1)) / (math.e - math.exp(-1))
    assert nothing == pytest.approx(0.269, abs=1e-3)
    assert verdict.ars(0.4, 0.4, 0.3, 0.3) == pytest.approx(nothing)
    full = verdict.lrs(real_hard=0.8, syn_hard=0.8, syn_own=0.8, random_own=0.3)
    assert full == pytest.approx(verdict.scaled(0.25)) and full > nothing
    assert verdict.scaled(1) == pytest.approx(1) and verdict.scaled(-1) == pytest.approx(0)
    with pytest.raises(Refused, match="fractions"):
        verdict.lrs(80, 80, 80, 30)
    means = {"distilled": 0.5, "random@floats": 0.3, "full": 0.8, "distilled/bare": 0.4, "random@floats/bare": 0.3}
    found = verdict.robust(means)
    assert found["hlr"] == pytest.approx(0.3) and found["ior"] == pytest.approx(0.2)
    assert found["lrs"] == pytest.approx(verdict.scaled(-0.05)) and found["ars"] == pytest.approx(verdict.scaled(0.15))
    soft = verdict.robust(means | {"distilled/hard": 0.45})
    assert soft["hlr"] == pytest.approx(0.35) and soft["lrs"] < found["lrs"]
    assert verdict.robust({"distilled": 0.5}) == {} and "ars" not in verdict.robust(
        {"distilled": 0.5, "random@floats": 0.3}
    )


def test_a_full_set_as_its_own_synthetic_set(tmp_path):
    """Its images are the real ones: nothing is lost to hard labels, and a random subset gains nothing over itself."""
    run = small_run(recipe={"steps": 30, "seeds": 2}, budget={"floats": 81 * 64 + 1})
    folder = an_artifact(tmp_path / "a", run)
    scorer = Scorer(run, rayd.load(folder))
    assert len(scorer.artifact) == len(scorer.train) == 81
    made = evaluate.score(run, str(folder), ["random@floats", "full"])
    means = {row["set"]: row["mean"] for row in made["rows"]}
    assert made["robust"]["hlr"] == pytest.approx(means["full"] - means["distilled"])
    assert abs(made["robust"]["hlr"]) < 0.1 and made["robust"]["lrs"] == pytest.approx(0.269, abs=0.03)
    assert made["robust"]["ars"] == pytest.approx(0.269, abs=0.03), "as many random images are the whole set again"


def test_the_full_set_has_epochs_of_its_own(tmp_path, monkeypatch):
    """The whole training set for three epochs, every other set for one; the table says so."""
    run = small_run(recipe={"steps": None, "epochs": 1, "full_epochs": 3, "batch": 27, "seeds": 1})
    folder = an_artifact(tmp_path / "a", run)
    steps: dict[int, int] = {}
    real = rows.evaluate
    monkeypatch.setattr(rows, "evaluate", lambda recipe, net, source, *args, **kwargs: (
        steps.update({len(source): source.length(recipe).steps}) or real(recipe, net, source, *args, **kwargs)
    ))  # fmt: skip
    made = evaluate.score(run, str(folder), ["full"])
    assert steps == {3: 1, 81: 9}
    views = {row["set"]: row["view"] for row in made["rows"]}
    assert views == {"distilled": "exact", "distilled-8bit": "8-bit", "full": "exact, 3 epochs"}
    assert "exact, 3 epochs" in (folder / "README.md").read_text()


def test_an_ask_is_answered_alike_alone_and_in_company(tmp_path):
    run = small_run()
    scorer = Scorer(run, rayd.load(an_artifact(tmp_path / "a", run)))
    both = scorer.answer(RowTask(RowName("random", "floats"), 0, (1, 2)))
    assert both[1].accuracy == scorer.answer(RowTask(RowName("random", "floats"), 0, (2,)))[0].accuracy


@pytest.mark.ray
def test_tasks_answer_as_this_process_does(tmp_path, ray_local):
    from rayd.fleet.tasks import run_tasks
    from rayd.run.evaluate import whole_tasks
    from rayd.run.rows import attempt, row_tasks, score_task

    run = small_run(scale={"name": "laptop"})
    folder = str(an_artifact(tmp_path / "a", run))
    asks = row_tasks(run, rayd.load(folder), ["random@floats", "nonsense@floats"])
    scorer = Scorer.of(run, folder)
    here = [(ask, attempt(scorer.answer, ask)) for ask in asks]
    units = [part for ask in asks for part in ask.parts(gpus=0)]
    there = list(whole_tasks(asks, run_tasks(run, "evaluate", score_task, units, folder)))
    assert [ask for ask, _ in there] == asks
    for (_, a), (_, b) in zip(here, there, strict=True):
        assert a == b if isinstance(a, str) else [s.accuracy for s in a] == [s.accuracy for s in b]
    told = [given for _, given in there if isinstance(given, str)]
    assert len(told) == 1 and "controls=nonsense@floats" in told[0]


def test_controls_are_asked_by_name():
    from rayd.run.evaluate import rows_asked
    from rayd.run.rows import CONTROLS

    assert rows_asked(True) == CONTROLS and rows_asked(False) == ()
    assert rows_asked(["start", "herding@raw"]) == ("start", "herding@raw")
    with pytest.raises(Refused, match=r"controls=coreset: allowed is start \| full \| random"):
        rows_asked(["coreset"])


def counted(monkeypatch):
    """Every network that is trained from now on: the images it saw and its seed."""
    trained, real = [], rayd.run.rows.evaluate

    def counting(recipe, net, source, test, transform, seeds, **keys):
        trained.extend((len(source), seed) for seed in seeds)
        return real(recipe, net, source, test, transform, seeds, **keys)

    monkeypatch.setattr("rayd.run.rows.evaluate", counting)
    return trained


ALL = ["random@floats", "herding@raw", "random@jpeg", "full"]


def test_the_next_method_and_seed_find_the_scores_of_controls(tmp_path, monkeypatch):
    run = small_run(recipe={"steps": 5, "seeds": 2})
    one, two = an_artifact(tmp_path / "one", run), an_artifact(tmp_path / "two", run, images=lambda x: x + 0.1)
    trained = counted(monkeypatch)
    first = evaluate.score(run, str(one), ALL)
    assert len(trained) == 2 * 8
    trained.clear()
    second = evaluate.score(replace(run, seed=7), str(two), ALL)
    assert len(trained) == 2 * 3, "distilled, in 8 bits and without augmentation: its own rows alone"
    rows = [{row["set"]: row for row in table["rows"]} for table in (first, second)]
    for name in (*ALL, "random@floats/bare"):
        assert rows[0][name] == rows[1][name]
    trained.clear()
    evaluate.score(replace(run, recipe=replace(run.recipe, seeds=3)), str(two), ALL)
    assert len(trained) == 3 * 3 + 5, "and one more network of each control"


@pytest.mark.parametrize(
    "change",
    [
        {"recipe": {"steps": 6, "seeds": 2}}, {"net": {"width": 9}}, {"data": {"count": 120}}, {"budget": {"ipc": 2}},
        {"scale": {"threads": 2}}, {"transform": "none"},
    ],
)  # fmt: skip
def test_a_control_of_something_else_is_another(tmp_path, monkeypatch, change):
    run, other = small_run(recipe={"steps": 5, "seeds": 2}), small_run(**{"recipe": {"steps": 5, "seeds": 2}, **change})
    evaluate.score(run, str(an_artifact(tmp_path / "one", run)), ["herding@floats"])
    trained = counted(monkeypatch)
    evaluate.score(other, str(an_artifact(tmp_path / "two", other)), ["herding@floats"])
    assert len(trained) == 3 * 2


@pytest.mark.parametrize(
    ("budget", "sizes", "room"),
    [
        ({"ipc": 1}, (123_036, 123_108, 122_668, 119_996), 4 * 30_721 + 512),  # pixels, LoDC, LSS and HaBa
        ({"bytes": 200_000}, (199_990, 200_000, 196_000), 200_000),
    ],
)
def test_methods_of_one_budget_leave_their_controls_the_same_room(budget, sizes, room):
    from rayd.run.scores import room_of

    run, spec = SimpleNamespace(budget=Budget(**budget)), Spec((3, 32, 32), 10)
    artifact = SimpleNamespace(spec=spec, ledger={})
    for size in (*sizes, 90_000, 250_000):
        artifact.ledger["bytes"] = size
        assert room_of(run, artifact) == (room if size in sizes else size), "one far from the budget has its own"


def test_the_best_compression_is_named_by_what_it_is_chosen_by(tmp_path):
    run = small_run()
    scorer = Scorer.of(run, str(an_artifact(tmp_path / "a", run)))
    best, raw = (scorer.shared.identity(RowName("herding", budget), 0) for budget in ("best", "raw"))
    assert best["bytes"] == scorer.artifact.ledger["bytes"] and "count" not in best
    assert best["validation"] == scorer.splits.val.manifest["content"] and "validation" not in raw


def test_evaluations_at_once_agree_on_the_controls(tmp_path, monkeypatch):
    """All train them, as none finds any; whoever writes first is believed by the others."""
    from concurrent.futures import ThreadPoolExecutor

    from rayd.run.scores import ControlScores

    run = small_run(recipe={"steps": 5, "seeds": 2})
    folders = [str(an_artifact(tmp_path / name, run)) for name in "abc"]
    monkeypatch.setattr(ControlScores, "find", lambda *_: None)
    real = rayd.run.rows.evaluate
    scatter = iter(range(1000))

    def uneven(*words, **keys):
        return [replace(score, accuracy=score.accuracy + next(scatter) * 1e-6) for score in real(*words, **keys)]

    monkeypatch.setattr("rayd.run.rows.evaluate", uneven)
    with ThreadPoolExecutor(3) as pool:
        tables = list(pool.map(lambda folder: evaluate.score(run, folder, ["full", "herding@raw"]), folders))
    rows = [{row["set"]: row["values"] for row in table["rows"]} for table in tables]
    for name in ("full", "herding@raw"):
        assert rows[0][name] == rows[1][name] == rows[2][name]
    assert rows[0]["distilled"] != rows[1]["distilled"]


def asked(gap, seeds=6, std=0.01, rng=None):
    """What `all_or_enough` takes of networks whose accuracies are drawn: rows with their values."""
    rng = rng or random.Random(0)
    recipe = RecipeConfig(seeds=seeds, until="verdict")
    means = {"distilled": 0.5 + gap, "random@floats": 0.3, "herding@jpeg": 0.5, "full": 0.9}
    tasks = [RowTask(RowName.parse(name), 0, tuple(range(seeds))) for name in means]

    def solve(tasks):
        for task in tasks:
            yield task, [Score(rng.gauss(means[str(task.row)], std), seed, "net") for seed in task.seeds]

    return recipe, {
        str(task.row): [one.accuracy for one in scores] for task, scores in all_or_enough(recipe, tasks, solve)
    }


def test_networks_are_added_until_the_verdict_is_decided():
    _, clear = asked(0.3, std=0.001)
    assert {name: len(values) for name, values in clear.items()} == dict.fromkeys(clear, 2)
    _, close = asked(0.0, std=0.05)
    assert [len(close[name]) for name in ("distilled", "herding@jpeg", "full")] == [6, 6, 2]
    assert len(close["random@floats"]) < 6, "decided before"


def test_stopping_early_does_not_raise_the_error():
    """Where there is no difference, a decision is an error: at most 5 % of the tables, however often one looks."""
    rng, wrong, tables = random.Random(1), 0, 1000
    for _ in range(tables):
        recipe, values = asked(0.0, rng=rng)
        rows = [{"set": name, **numbers.summary(values[name])} for name in ("distilled", "herding@jpeg")]
        wrong += verdict.verdict(rows, recipe.looks)["overall"] != "undecided"
    assert wrong <= 0.05 * tables


def test_a_table_that_stopped_early_says_so(tmp_path):
    run = small_run(recipe={"until": "verdict", "seeds": 4})
    folder = an_artifact(tmp_path / "a", run, images=lambda pixels: pixels.roll(1, 0))
    table = evaluate.score(run, str(folder), ["random@floats", "full"])
    assert table["looks"] == 3 and {row["set"]: row["n"] for row in table["rows"]}["full"] == 2
    card = rayd.load(folder).card
    assert "from 2 to at most 4" in card["claim"]["stopping"] and "its 3 looks" in (folder / "README.md").read_text()
    assert evaluate.is_scored(run, str(folder), ["full"])
    fixed = replace(run, recipe=replace(run.recipe, until="seeds"))
    assert not evaluate.is_scored(fixed, str(folder), ["full"])
    assert {row["n"] for row in evaluate.score(fixed, str(folder), ["full"])["rows"]} == {4}
