"""Evaluations that are killed, interrupted, or run beside others; what a stranger's artifact may not do."""

from __future__ import annotations

import json
import os
import signal
import threading
from dataclasses import replace

import pytest

import rayd
from rayd.artifact import write
from rayd.artifact.export import rendered
from rayd.errors import Refused
from rayd.run import evaluate
from rayd.run.verify import verify
from rayd.store import Store
from tests.run.test_evaluate import reseal
from tests.support.loopback import s3_server
from tests.support.runs import TABLE, an_artifact, small_run


def counted(card, contents):
    """An update as an evaluation makes it: one more read, a table of its own."""
    row = {
        "set": "distilled", "recipe": "r", "net": "n", "view": "exact", "mean": 0.5, "std": 0.1, "ci95": 0.1, "n": 5,
        "images": 3, "bytes": 100, "seed_list": [1],
    }  # fmt: skip
    reads = card["reads"] + 1
    return {"scores": {"r": row}, "reads": reads}, {"controls.json": json.dumps({**TABLE, "reads": reads}).encode()}


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "timing.json"}


def in_child(action):
    """Its exit status; SIGKILL is -9."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


OPERATIONS = ("write", "delete")


def killed_at(number):
    """A Store whose process is killed before its operation of that number takes place."""

    class Deadly(Store):
        left = number

        def _count(self):
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            self.left -= 1

        def write(self, name, data):
            self._count()
            super().write(name, data)

        def delete(self, name):
            self._count()
            super().delete(name)

    return Deadly


def test_a_kill_at_any_moment_of_an_update_leaves_the_old_state_or_the_new(tmp_path):
    run = small_run()
    whole = an_artifact(tmp_path / "whole", run)
    write.amend(Store(whole), counted)
    states, number, status = [], 0, -signal.SIGKILL
    while status == -signal.SIGKILL:
        folder = an_artifact(tmp_path / str(number), run)
        status = in_child(lambda: write.amend(killed_at(number)(folder), counted))  # noqa: B023
        states.append(rayd.load(folder).card["reads"])
        if states[-1] == 1:
            write.settle(Store(folder))
        else:
            write.amend(Store(folder), counted)
        assert files(folder) == files(whole), f"killed before operation {number}"
        number += 1
    assert status == 0 and states == sorted(states) and states.count(0) >= 3 and states.count(1) >= 4


def test_an_artifact_is_readable_between_any_two_writes(tmp_path):
    folder = an_artifact(tmp_path, small_run())
    seen = []

    class Watched(Store):
        def write(self, name, data):
            super().write(name, data)
            seen.append((name.split(".")[0], rayd.load(folder).card["reads"]))

    for _ in range(2):
        write.amend(Watched(folder), counted)
    names = ["controls", "README", "card", "README", "controls"]
    assert sorted(name for name, _ in seen) == sorted(2 * names)
    reads = [count for _, count in seen]
    assert reads == sorted(reads) and reads[0] == 0 and reads[-1] == 2


def test_a_card_replaced_while_it_is_read_is_read_again(tmp_path):
    folder = an_artifact(tmp_path, small_run())

    class Overtaken(Store):
        once = True

        def read(self, name):
            data = super().read(name)
            if name == "card.json" and self.once:
                self.once = False
                write.amend(Store(folder), counted)
            return data

    assert rayd.load(Overtaken(folder)).card["reads"] == 1


def test_updates_of_many_processes_lose_nothing(tmp_path):
    folder = an_artifact(tmp_path, small_run())

    def five():
        for _ in range(5):
            write.amend(Store(folder), counted)

    children = []
    for _ in range(6):
        pid = os.fork()
        if pid == 0:
            try:
                five()
                os._exit(0)
            except BaseException:
                os._exit(1)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 6
    assert rayd.load(folder).card["reads"] == 30
    assert not [name for name in os.listdir(folder) if name.startswith(".") or name.count(".") > 1]


def test_updates_of_an_object_store_lose_nothing(tmp_path):
    with s3_server() as uri:
        store = Store(uri)
        for name, data in files(an_artifact(tmp_path, small_run())).items():
            store.write(name, data)
        threads = [threading.Thread(target=write.amend, args=(Store(uri), counted)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert rayd.load(uri).card["reads"] == 3
        assert not [name for name in store.list() if name.startswith("lease/") or name.count(".") > 1]


def test_four_evaluations_at_once_merge(tmp_path):
    """Three recipes, one of them twice under other controls: every score is there, the test set was read four times."""
    base = small_run(recipe={"steps": 5, "seeds": 2})
    folder = an_artifact(tmp_path, base)
    runs = [replace(base, recipe=replace(base.recipe, name=name, lr=lr)) for name, lr in (("a", 0.1), ("b", 0.2))]
    asked = [(base, ["random@raw"]), (base, ["start"]), (runs[0], []), (runs[1], ["random@raw"])]
    threads = [threading.Thread(target=evaluate.score, args=(run, str(folder), controls)) for run, controls in asked]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    card = rayd.load(folder).card
    assert card["reads"] == 4
    names = {"a": 2, "b": 3, "short": 4}
    assert {name: sum(row["recipe"] == name for row in card["scores"].values()) for name in names} == names
    assert not [name for name in os.listdir(folder) if name.startswith("score-")]


def test_the_tables_of_one_recipe_are_joined(tmp_path):
    run = small_run(recipe={"steps": 5, "seeds": 2})
    parts, whole = (an_artifact(tmp_path / name, run) for name in ("parts", "whole"))
    evaluate.score(run, str(whole), ["random@raw", "herding@raw"])
    evaluate.score(run, str(parts), ["random@raw"])
    assert evaluate.is_scored(run, str(parts), ["random@raw"])
    assert not evaluate.is_scored(run, str(parts), ["herding@raw"])
    evaluate.score(run, str(parts), ["herding@raw"])
    assert evaluate.is_scored(run, str(parts), ["random@raw", "herding@raw"])
    a, b = (json.loads((folder / "controls.json").read_text()) for folder in (parts, whole))
    assert {row["set"]: row for row in a["rows"]} == {row["set"]: row for row in b["rows"]}
    assert (a["verdict"]["overall"], sorted(a["verdict"]["why"])) == (
        b["verdict"]["overall"],
        sorted(b["verdict"]["why"]),
    )
    other = replace(run, recipe=replace(run.recipe, lr=0.2))
    assert not evaluate.is_scored(other, str(parts), [])


def test_another_network_or_other_images_make_another_table(tmp_path):
    """Under one recipe and the same names: never 'already done', and no row beside those it cannot be compared with."""
    run = small_run(recipe={"steps": 5, "seeds": 2})
    folder = an_artifact(tmp_path / "a", run)
    evaluate.score(run, str(folder), ["random@raw"])
    assert evaluate.is_scored(run, str(folder), [])
    for number, changes in enumerate(({"net": {"norm": "none"}}, {"data": {"seed": 3}}), 2):
        other = small_run(recipe={"steps": 5, "seeds": 2}, **changes)
        assert not evaluate.is_scored(other, str(folder), []), changes
        evaluate.score(other, str(folder), [])
        table = json.loads((folder / "controls.json").read_text())
        assert {row["set"] for row in table["rows"]} == {"distilled", "distilled-8bit"}
        assert rayd.load(folder).card["reads"] == number


def test_a_table_counts_if_the_card_lists_it(tmp_path):
    """controls.json of an artifact that was here before says nothing of this one; a damaged artifact is no scored one."""
    run = small_run(recipe={"steps": 5, "seeds": 2})
    folder = an_artifact(tmp_path / "a", run)
    evaluate.score(run, str(folder), [])
    (folder / "card.json").unlink()
    an_artifact(folder, run)
    assert (folder / "controls.json").exists() and not evaluate.is_scored(run, str(folder), [])
    evaluate.score(run, str(folder), [])
    assert rayd.load(folder).card["reads"] == 1 and evaluate.is_scored(run, str(folder), [])
    (folder / "codec.safetensors").write_bytes(b"")
    with pytest.raises(Refused, match=r"codec\.safetensors: was changed after it was written"):
        evaluate.is_scored(run, str(folder), [])


def test_a_card_says_why_a_control_is_left_out_and_not_where(tmp_path):
    run = small_run(
        method={"objective": {"name": "mtt"}},
        expert={"epochs": 60},
        recipe={"steps": 5, "seeds": 2},
        out=str(tmp_path / "o"),
    )
    folder = an_artifact(tmp_path / "o" / "artifact", run)
    table = evaluate.score(run, str(folder), ["start"])
    assert table["skipped"]["start"].startswith("experts/buffer.json: no expert buffer here")
    for name, data in files(folder).items():
        assert str(tmp_path).encode() not in data, name


def test_networks_of_one_width_have_names_of_their_own(tmp_path):
    nets = [{"width": 8, "depth": 1}, {"width": 8, "depth": 1, "norm": "none"}, {"width": 4, "depth": 1}]
    run = small_run(recipe={"steps": 5, "seeds": 2, "nets": nets})
    folder = an_artifact(tmp_path / "a", run)
    table = evaluate.score(run, str(folder), [])
    assert table["nets"] == ["convnet-w8-d1-instance", "convnet-w8-d1-none", "convnet-w4"]
    names = [(row["set"], row["net"]) for row in table["rows"]]
    assert len(set(names)) == len(names) == len(rayd.load(folder).card["scores"])


def test_an_interrupted_evaluation_repeats_no_network(tmp_path, monkeypatch):
    run = small_run(recipe={"steps": 5, "seeds": 3})
    torn, whole = (an_artifact(tmp_path / name, run) for name in ("torn", "whole"))
    evaluate.score(run, str(whole), ["random@raw", "start"])
    trained, real = [], rayd.run.rows.evaluate

    def interrupted(recipe, net, source, test, transform, seeds, **keys):
        if len(trained) == 5:
            trained.append(None)
            raise KeyboardInterrupt
        trained.extend((len(source), recipe.labels, seed) for seed in seeds)
        return real(recipe, net, source, test, transform, seeds, **keys)

    monkeypatch.setattr("rayd.run.rows.evaluate", interrupted)
    run = replace(run, scores=str(tmp_path / "scores"))
    with pytest.raises(KeyboardInterrupt):
        evaluate.score(run, str(torn), ["random@raw", "start"])
    assert rayd.load(torn).card["reads"] == 0 and len([name for name in os.listdir(torn) if "score-" in name]) == 5
    evaluate.score(run, str(torn), ["random@raw", "start"])
    assert len(trained) == 1 + 3 * 4, "twelve networks in all, none of them twice"
    assert files(torn) == files(whole) and rayd.load(torn).card["reads"] == 1
    evaluate.score(run, str(torn), [])
    assert len(trained) == 1 + 3 * 6, "a second evaluation is a second reading"


# ---- strangers ---------------------------------------------------------------------------------------------------


def test_verify_executes_nothing_of_an_artifact(tmp_path):
    run = small_run()
    folder = an_artifact(tmp_path / "a", run)
    (tmp_path / "gift").mkdir()
    (tmp_path / "gift" / "code.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n")
    reseal(folder, lambda card: card["config"].update(methods=str(tmp_path / "gift")))
    assert all(finding.holds for finding in verify(str(folder), run))
    assert all(finding.holds for finding in verify(str(folder)))
    assert not (tmp_path / "executed").exists()
    list(verify(str(folder), methods=str(tmp_path / "gift")))
    assert (tmp_path / "executed").exists(), "a folder named by whoever verifies is another matter"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"path": "/etc"}, "they lay in a folder, /etc: give data.path="),
        ({"path": "s3://bucket/x"}, "they lay in a folder, s3://bucket/x"),
        ({"size": 20000}, "their side is 20000 in the card's config, 8 in its shape"),
        ({"name": "generated", "size": 8, "classes": 10**9}, "they have 1000000000 classes"),
        ({"name": "generated", "size": 8, "count": 10**10}, "give data=generated data.size=8 to have them decoded"),
    ],
)
def test_verify_decodes_nothing_large_that_a_card_alone_names(data, says, tmp_path, monkeypatch):
    folder = an_artifact(tmp_path / "a", small_run())
    reseal(folder, lambda card: card["config"]["data"].update(data))
    monkeypatch.setattr("rayd.run.verify.load_data", lambda config: pytest.fail("opened"))
    *before, last = verify(str(folder))
    assert all(finding.holds for finding in before) and not last.holds and says in last.detail


def test_verify_weighs_a_named_dataset_before_it_is_decoded(tmp_path, monkeypatch):
    folder = an_artifact(tmp_path / "a", small_run())
    reseal(folder, lambda card: card["config"]["data"].update(name="digits"))
    monkeypatch.setattr("rayd.data.load.MOST_NAMED", 10**6)
    monkeypatch.setattr("rayd.run.verify.load_data", lambda config: pytest.fail("opened"))
    *_, last = verify(str(folder))
    assert not last.holds and "give data=digits data.size=8" in last.detail


def test_nothing_is_verified_where_there_is_no_artifact(tmp_path):
    with pytest.raises(Refused, match=f"artifact={tmp_path}: allowed is the folder that a distillation left"):
        list(verify(str(tmp_path)))


def test_a_readme_holds_no_markup_of_a_card(tmp_path):
    run = small_run(recipe={"name": "<script>x</script> | `[a](javascript:b)`\n# title", "steps": 5, "seeds": 2})
    folder = an_artifact(tmp_path, run)
    evil = "<img src=x onerror=y>\n---\nlicense: mit"
    reseal(folder, lambda card: card.update(sentence=evil, fingerprint=evil, data={**card["data"], "name": evil}))
    evaluate.score(run, str(folder), [])
    for page in ((folder / "README.md").read_text(), rendered(rayd.load(folder), "folder")["README.md"].decode()):
        assert "onerror" in page and "<script" not in page and "<img" not in page and "](javascript" not in page
        assert "\n# title" not in page and "\nlicense: mit" not in page


def test_an_export_prints_no_code_of_a_card(tmp_path):
    folder = an_artifact(tmp_path, small_run())
    reseal(folder, lambda card: card["config"]["net"].update(width="1); import os; (2"))
    with pytest.raises(Refused, match=r"card\.config\.net\.width"):
        rendered(rayd.load(folder), "parquet")


def test_a_card_names_no_folder_of_its_maker(tmp_path):
    from rayd.run.distill import distill
    from tests.run.test_distill import OWN, folder_of_images, method

    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "mine.py").write_text(OWN.format(""))
    run = small_run(
        method=method(objective={"name": "mine", "batch_real": 8}), recipe={"steps": 5, "seeds": 2},
        out=str(tmp_path / "out"),
        data=folder_of_images(tmp_path / "images", 40), methods=str(tmp_path / "own"),
    )  # fmt: skip
    list(distill(run))
    evaluate.score(run, str(tmp_path / "out" / "artifact"), [])
    for name, data in files(tmp_path / "out" / "artifact").items():
        assert str(tmp_path).encode() not in data, name
    card = rayd.load(tmp_path / "out" / "artifact").card
    assert card["data"]["source"] == "images" and card["config"]["data"]["path"] == "images"
    lines = [str(finding) for finding in verify(str(tmp_path / "out" / "artifact"), methods=run.methods)]
    assert lines[-1].startswith("FAILS  data are those of the card") and "data.path=" in lines[-1]
    assert all(finding.holds for finding in verify(str(tmp_path / "out" / "artifact"), run, methods=run.methods))
