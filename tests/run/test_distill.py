"""The run around the loop: teachers, validation, selection, checkpoints, resume, identity."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import rayd
from rayd.distill.budget import Budget
from rayd.errors import Failed, Refused
from rayd.experts.buffer import Buffer
from rayd.run.agreement import check, hash_of
from rayd.run.assemble import _teacher, surroundings
from rayd.run.checkpoints import Checkpoints
from rayd.run.distill import Worker, distill
from rayd.run.experts import ExpertPlan, build
from rayd.run.identity import refuse_differing, whole_identity
from rayd.run.recorder import VALIDATION_IMAGES
from rayd.store import Store
from tests.support.runs import digits_run, small_run
from tests.support.workers import Meeting


def method(**keys):
    quick = {"steps": 6, "checkpoint": 2, "compiled": False}
    return {"codec": {"name": "pixel"}, "objective": {"name": "distribution", "batch_real": 8}, **quick, **keys}


def run_at(folder, **keys):
    """Distribution matching on generated images, six steps of some milliseconds."""
    return small_run(method=method(**keys), recipe={"steps": 8}, out=str(folder), data={"val": 0.4})


def pixels(folder):
    return rayd.load(folder / "artifact").stored["pixels"].tensor


def test_the_teacher_is_every_expert_that_is_right():
    """Three experts, whose logits are their parameters: two are right on class 0, one on class 1, none on class 2."""
    rows = torch.tensor([[3.0, 0.0, 1.0], [5.0, 2.0, 0.0], [0.0, 7.0, 1.0]])
    inputs = SimpleNamespace(
        experts=3,
        last_epoch=9,
        spec=SimpleNamespace(classes=3),
        theta=lambda expert, epoch: rows[expert] if epoch == 9 else None,
        net=lambda theta, images: theta.expand(len(images), 3),
    )
    logits = _teacher(inputs)(torch.zeros(3, 1, 2, 2), torch.tensor([0, 1, 2]))
    assert torch.equal(logits[0], torch.tensor([4.0, 1.0, 0.5])) and torch.equal(logits[1], rows[2])
    assert torch.allclose(logits[2], rows.mean(0))


def test_the_best_validation_is_kept(tmp_path, monkeypatch):
    """Validated at steps 2, 4 and 6 as 0.3, 0.9 and 0.5: the artifact is the set of step 4, resumed in between or not."""
    seen = []

    def validated(assembled, codec, numbers):
        seen.append(codec.pixels.detach().clone())
        return [{1: 0.3, 2: 0.9, 3: 0.5}[len(seen)]] * len(numbers)

    monkeypatch.setattr("rayd.run.recorder.validate", validated)
    list(distill(run_at(tmp_path / "a", validate=2, select="best_val")))
    assert torch.equal(pixels(tmp_path / "a"), seen[1]) and not torch.equal(seen[1], seen[2])
    assert rayd.load(tmp_path / "a" / "artifact").card["claim"]["best_val"] == pytest.approx(0.9)
    first = [image.clone() for image in seen]
    seen.clear()
    torn = distill(run_at(tmp_path / "b", validate=2, select="best_val"))
    assert [next(torn).number for _ in range(5)][-1] == 5
    torn.close()
    assert [step.number for step in distill(run_at(tmp_path / "b", validate=2, select="best_val"))] == [5, 6]
    assert torch.equal(pixels(tmp_path / "b"), first[1])


def test_a_validation_sees_every_class(tmp_path, monkeypatch):
    samples = []
    whole = rayd.run.recorder.evaluate

    def watched(recipe, net, source, test, *rest, **keys):
        samples.append((recipe.length(len(source), len(source)).steps, test.labels_N.tolist()))
        return whole(recipe, net, source, test, *rest, **keys)

    monkeypatch.setattr("rayd.run.recorder.evaluate", watched)
    monkeypatch.setattr("rayd.run.recorder.VALIDATION_IMAGES", 6)
    run = run_at(tmp_path, validate=6)
    steps = list(distill(run))
    planned = surroundings(run)[0].val.sample(6, run.seed).labels_N.tolist()
    assert samples == [(2, planned)] and set(planned) == {0, 1, 2} and VALIDATION_IMAGES == 5000
    assert rayd.load(tmp_path / "artifact").card["claim"]["best_val"] >= 0 and len(steps) == 6


# ---- checkpoints -------------------------------------------------------------------------------------------------


def interrupted(run, steps):
    walk = distill(run)
    for _ in range(steps):
        next(walk)
    walk.close()


def files(folder):
    """The artifact's files but the times."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "timing.json"}


def truncate(path):
    path.write_bytes(path.read_bytes()[:20])


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: truncate(folder / "step-000004.json"),
        lambda folder: truncate(folder / "step-000004.safetensors"),
        lambda folder: (folder / "step-000004.safetensors").unlink(),
        lambda folder: (folder / "step-000004.json").write_text("[]"),
    ],
)
def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(tmp_path, harm, caplog):
    list(distill(run_at(tmp_path / "whole")))
    interrupted(run_at(tmp_path / "torn"), 5)
    harm(tmp_path / "torn" / "checkpoints")
    assert [step.number for step in distill(run_at(tmp_path / "torn"))] == [3, 4, 5, 6]
    assert "going back to the checkpoint before" in caplog.text and "step-000004" in caplog.text
    assert files(tmp_path / "torn" / "artifact") == files(tmp_path / "whole" / "artifact")
    assert list((tmp_path / "torn" / "checkpoints").iterdir()) == []


@pytest.mark.parametrize("text", ['{"step": 1}\n{"st', "[]\n", "{}\n"])
def test_damaged_metrics_are_named(tmp_path, text):
    interrupted(run_at(tmp_path), 5)
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(Failed, match=f"{tmp_path}/metrics.jsonl: not readable as JSON .* remove it and run the same"):
        list(distill(run_at(tmp_path)))
    (tmp_path / "metrics.jsonl").unlink()
    assert [step.number for step in distill(run_at(tmp_path))] == [5, 6]


# ---- identity ----------------------------------------------------------------------------------------------------


def folder_of_images(folder, shade):
    """Two classes of eight small images each, for training and test."""
    image = pytest.importorskip("PIL.Image")
    for part in ("train", "test"):
        for name, level in (("a", shade), ("b", 250)):
            (folder / part / name).mkdir(parents=True)
            for i in range(8):
                image.new("L", (8, 8), level - i).save(folder / part / name / f"{i}.png")
    return {"name": "folder", "path": str(folder), "size": 8, "channels": 1, "val": 0.25}


def test_other_images_under_one_out_are_refused(tmp_path):
    cats, xrays = (folder_of_images(tmp_path / name, shade) for name, shade in (("cats", 40), ("xrays", 90)))
    mine = small_run(method=method(), recipe={"steps": 8}, data=cats, out=str(tmp_path / "out"))
    other = replace(mine, data=replace(mine.data, path=xrays["path"]))
    assert mine.fingerprint() == other.fingerprint(), "a config does not know what lies at a path"
    interrupted(mine, 3)
    with pytest.raises(Refused, match=r"holds checkpoints of another run: images\.train .*images\.val .*another out"):
        next(distill(other))
    list(distill(mine))
    with pytest.raises(Refused, match=r"holds the artifact of another run: images\.train"):
        next(distill(other))
    assert list(distill(mine)) == [], "the same run is done"


def test_the_command_line_refuses_other_images_and_edited_methods(tmp_path, capsys):
    from jobs import distill as verb
    from jobs.compose import command

    folders = {name: folder_of_images(tmp_path / name, shade)["path"] for name, shade in (("cats", 40), ("dogs", 90))}
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "mine.py").write_text(OWN.format(""))
    words = [
        "method=dm", "method.objective.batch_real=8", "method.steps=2", "method.compiled=false", "data=folder",
        "data.size=8", "data.channels=1", "net=convnet", "net.width=4", "net.depth=1", f"methods={tmp_path / 'own'}",
        f"out={tmp_path / 'out'}",
    ]  # fmt: skip

    def told(*more):
        code = command("distill", None, verb.act, "", [*words, *more])
        return code, "".join(capsys.readouterr())

    assert told(f"data.path={folders['cats']}")[0] == 0
    code, text = told(f"data.path={folders['dogs']}")
    assert code == 2 and "holds the artifact of another run: images.train (" in text and "Traceback" not in text
    (tmp_path / "own" / "mine.py").write_text(OWN.format("  # edited"))
    code, text = told(f"data.path={folders['cats']}")
    assert code == 2 and "holds the artifact of another run: methods (" in text


def test_another_config_is_refused_by_its_keys(tmp_path):
    interrupted(run_at(tmp_path), 3)
    with pytest.raises(Refused, match=r"another run: config\.method\.steps \(6 there, 8 here\); give another out"):
        next(distill(run_at(tmp_path, steps=8)))
    list(distill(run_at(tmp_path)))
    with pytest.raises(Refused, match=r"the artifact of another run: config\.method\.steps \(6 there, 8 here\)"):
        next(distill(run_at(tmp_path, steps=8)))


OWN = """
from rayd.methods.dm import Distribution{}


class Mine(Distribution):
    pass


OBJECTIVES = {{"mine": Mine}}
"""


def test_edited_methods_of_ones_own_are_refused(tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "mine.py").write_text(OWN.format(""))
    mine = method(objective={"name": "mine", "batch_real": 8})
    run = small_run(method=mine, recipe={"steps": 8}, out=str(tmp_path / "out"), methods=str(tmp_path / "own"))
    interrupted(run, 3)
    (tmp_path / "own" / "mine.py").write_text(OWN.format("  # edited"))
    with pytest.raises(Refused, match=r"another run: methods \([0-9a-f]{12}\.\.\. there, [0-9a-f]{12}\.\.\. here\)"):
        next(distill(run))
    (tmp_path / "own" / "mine.py").write_text(OWN.format(""))
    assert [step.number for step in distill(run)] == [3, 4, 5, 6]


def test_other_arithmetic_and_another_device_are_refused(tmp_path, monkeypatch):
    run = run_at(tmp_path, compiled=True)
    monkeypatch.setattr("rayd.run.identity.can_compile", lambda device: False)
    interrupted(run, 3)
    monkeypatch.setattr("rayd.run.identity.can_compile", lambda device: True)
    with pytest.raises(Refused, match=r"another run: arithmetic \(eager there, compiled here\)"):
        next(distill(run))
    monkeypatch.undo()
    splits, _, _ = surroundings(run)
    with pytest.raises(Refused, match=r"x of another run: device \(cpu there, cuda here\); stop"):
        here = whole_identity(run, splits, torch.device("cuda"))
        refuse_differing("x", {**here, "device": "cpu"}, here, "stop")


def test_a_buffer_that_grows_changes_nothing(tmp_path):
    """Experts 2 and 3 come while a run of the first two is under way: neither the rest of it nor a new one sees them."""
    few, many = (digits_run(tmp_path / "experts", experts=experts) for experts in (2, 4))
    list(build(ExpertPlan.open(few)))
    runs = {
        name: replace(
            few, out=str(tmp_path / name), buffer=str(tmp_path / "experts" / "experts"),
            method=replace(few.method, steps=4, checkpoint=2, compiled=False), budget=Budget(ipc=1),
        )
        for name in ("whole", "torn", "late")
    }  # fmt: skip
    list(distill(runs["whole"]))
    interrupted(runs["torn"], 3)
    list(build(ExpertPlan.open(replace(many, out=few.out))))
    assert len(Buffer(str(tmp_path / "experts" / "experts")).numbers) == 4
    assert [step.number for step in distill(runs["torn"])] == [3, 4]
    list(distill(runs["late"]))
    whole = files(tmp_path / "whole" / "artifact")
    assert files(tmp_path / "torn" / "artifact") == whole == files(tmp_path / "late" / "artifact")
    assert rayd.load(tmp_path / "whole" / "artifact").card["identity"]["experts"] == [0, 1]


def test_experts_that_were_drawn_from_and_are_gone_are_missed(tmp_path):
    checkpoints = Checkpoints(Store(tmp_path))
    assert checkpoints.claim({"device": "cpu"}, [0, 1, 4]) == [0, 1, 4]
    assert checkpoints.claim({"device": "cpu"}, [0, 1, 2, 3, 4]) == [0, 1, 4]
    with pytest.raises(Refused, match=r"began with experts \[1\] that the buffer no longer has"):
        checkpoints.claim({"device": "cpu"}, [0, 4])
    (tmp_path / "identity.json").unlink()
    checkpoints.save(5, {"step": torch.tensor([5])})
    with pytest.raises(Refused, match=r"checkpoints of an unknown run, without identity\.json"):
        checkpoints.claim({"device": "cpu"}, [0])


def test_a_second_writer_of_a_folder_is_refused(tmp_path):
    first = distill(run_at(tmp_path))
    assert next(first).number == 1
    with pytest.raises(Refused, match=rf"is being written by .* \(process {os.getpid()}\) since"):
        next(distill(run_at(tmp_path)))
    assert [step.number for step in first] == [2, 3, 4, 5, 6]
    assert list(distill(run_at(tmp_path))) == [], "what is finished is not locked"
    assert not list((tmp_path / "lease").iterdir())


# ---- agreement ---------------------------------------------------------------------------------------------------


def together(run, size=2, between=lambda rank, walk: None):
    """The same run on several workers: threads that meet in their sums. What each of them raised, or None."""
    meeting, ends = Meeting(size), {}

    def work(rank):
        try:
            walk = distill(run, Worker(rank, size, meeting.reduce(rank), meeting.group(rank)))
            for _ in walk:
                between(rank, walk)
            ends[rank] = None
        except (Failed, Refused, threading.BrokenBarrierError) as error:
            ends[rank] = error
            meeting.barrier.abort()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ends


def test_the_networks_of_a_validation_are_shared_out(tmp_path, monkeypatch):
    """Each of two workers trains one of the two, a third none; all know the mean, which is that of one worker."""
    keys = {
        "validate": 3,
        "select": "best_val",
        "objective": {"name": "distribution", "batch_real": 8, "classes_per_item": 1},
    }
    list(distill(run_at(tmp_path / "alone", **keys)))
    whole, trained = rayd.run.recorder.evaluate, {}

    def watched(recipe, net, source, test, transform, seeds, **more):
        trained.setdefault(threading.get_ident(), []).extend(seeds)
        return whole(recipe, net, source, test, transform, seeds, **more)

    monkeypatch.setattr("rayd.run.recorder.evaluate", watched)
    for size in (2, 3):
        trained.clear()
        assert together(run_at(tmp_path / f"{size}", **keys), size) == dict.fromkeys(range(size))
        assert sorted(map(len, trained.values())) == [2, 2], "one network at each of two validations"
        vals = [
            [
                line["val"]
                for line in map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
                if "val" in line
            ]
            for name in ("alone", f"{size}")
        ]
        assert vals[0] == vals[1] and len(vals[0]) == 2
        assert pixels(tmp_path / f"{size}").equal(pixels(tmp_path / "alone"))


def test_workers_start_from_worker_0s_codec_and_resume_where_it_does(tmp_path, monkeypatch):
    """Worker 1 begins with other pixels; later the newest checkpoint is damaged as worker 0 reads it, and only then."""
    run = run_at(tmp_path / "many", objective={"name": "distribution", "batch_real": 8, "classes_per_item": 1})
    alone = replace(run, out=str(tmp_path / "alone"))
    list(distill(alone))
    whole, built = rayd.run.distill.assemble, []

    def other_start(*arguments):
        assembled = whole(*arguments)
        with torch.no_grad():
            assembled.codec.pixels += len(built)
        built.append(assembled)
        return assembled

    monkeypatch.setattr("rayd.run.distill.assemble", other_start)
    monkeypatch.setattr("rayd.run.recorder.write_artifact", lambda *arguments: None)
    monkeypatch.setattr("rayd.run.checkpoints.Checkpoints.clear", lambda self: None)
    assert together(run) == {0: None, 1: None}
    a, b = (assembled.codec.pixels for assembled in built)
    assert torch.equal(a, b)
    newest = tmp_path / "many" / "checkpoints" / "step-000004.json"
    loaded = []
    at, latest = Checkpoints.at, Checkpoints.latest
    monkeypatch.setattr("rayd.run.checkpoints.Checkpoints.at", lambda self, step: loaded.append(step) or at(self, step))

    def torn(self):
        text = newest.read_bytes()
        newest.write_bytes(b"{")
        found = latest(self)
        newest.write_bytes(text)
        return found

    monkeypatch.setattr("rayd.run.checkpoints.Checkpoints.latest", torn)
    assert together(run) == {0: None, 1: None} and loaded == [2], "worker 1 would have found step 4"


def test_a_flipped_bit_ends_the_step_with_the_workers_named(tmp_path, monkeypatch):
    run = run_at(tmp_path, objective={"name": "distribution", "batch_real": 8, "classes_per_item": 1})
    whole, works = rayd.run.recorder.distillation, {}

    def watched(assembled, share, reduce):
        works[share[0]] = whole(assembled, share, reduce)
        return works[share[0]]

    monkeypatch.setattr("rayd.run.recorder.distillation", watched)

    def flip(rank, walk):
        if rank == 1 and works[1].number == 3:
            bits = works[1].codec.pixels.data.view(torch.int32)
            bits[0, 0, 3, 3] ^= 1

    ends = together(run, between=flip)
    assert set(ends) == {0, 1} and any(isinstance(error, Failed) for error in ends.values())
    text = next(str(error) for error in ends.values() if isinstance(error, Failed))
    assert "worker 0: step 3, parameters" in text and "worker 1: step 3, parameters" in text
    assert not (tmp_path / "artifact").exists()
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*.json")) == ["step-000002.json"]


def test_a_hash_sees_every_bit_and_every_place():
    def hashed(numbers):
        return hash_of(SimpleNamespace(players=[SimpleNamespace(params=[torch.tensor(numbers)])]))

    assert hashed([1.0, 2.0]) == hashed([1.0, 2.0]) != hashed([2.0, 1.0])
    assert hashed([0.0, 0.0]) != hashed([0.0, -0.0]) and 0 <= hashed([-1.0, 3.0]) < 2**32
    check([(3.0, 7.0), (3.0, 7.0)])
    with pytest.raises(Failed, match="worker 1: step 4"):
        check([(3.0, 7.0), (4.0, 7.0)])
