"""Files from strangers, read as a user would: each in a process with bounded memory and time that may execute nothing.

As a program it has everything imported, reads lines of {kind, first, count}, and answers each with a list of what went
wrong: an error that is none of rayd's, too much memory or time, code that ran, a file written elsewhere, markup in a page.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
import resource
import select
import shutil
import signal
import sys
import tarfile
import traceback
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.forkserver import ROOT, Server, serving
from tests.support.mutations import MARK, mutate

GOLDEN = ROOT / "tests" / "golden" / "1"
MEMORY = 2 * 2**30
"""Bytes above those of the process that has everything imported."""
SECONDS = 10
"""Of processor time for one folder: a busy machine is no hang. Ten times as much may pass on the clock."""
BATCH = 20
"""Folders that one process reads, so that what one leaves behind is soon gone."""
REPORTED = 20
"""A page takes longer than all the rest: one artifact in so many is drawn."""
FORBIDDEN = {
    "pickle.find_class", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect",
    "socket.getaddrinfo", "urllib.Request", "ctypes.dlopen",
}  # fmt: skip


# ---- what is read --------------------------------------------------------------------------------------------------


def make_corpus(folder: Path) -> None:
    """A folder of each kind, as rayd or a dataset's maker writes it."""
    for path in GOLDEN.parent.glob("[0-9]*/*"):
        if (path / "card.json").exists():
            out = folder / "artifact" / (path.name if path.parent == GOLDEN else f"{path.name}-{path.parent.name}")
            shutil.copytree(path, out / "artifact")
            shutil.copytree(GOLDEN / "buffer", out / "experts")
            (out / "artifact" / "timing.json").write_text('{"distill_s": 2.5, "distill_peak": 1e8, "steps": 3}')
            (out / "timing.json").write_text('{"experts_s": 2.5, "experts_peak": 100000000}')
            lines = ({"step": i, "loss": 1.0 / i, "seconds": 0.1, "step_size": 0.01, "val": 0.5} for i in range(1, 4))
            (out / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            plan = {
                "experts": {"experts": 2, "shards": 2, "bytes": 20000}, "ledger": {"floats": 641, "bytes": 2708},
                "seconds": {"distill": 3.0}, "peak": {"distill": 1e8, "evaluate": 1e8},
            }  # fmt: skip
            (out / "plan.json").write_text(json.dumps(plan))
    for name in ("buffer", "buffer-fp16"):
        out = folder / "buffer" / name
        shutil.copytree(GOLDEN / name, out)
        fingerprint = json.loads((out / "buffer.json").read_text())["fingerprint"]
        failure = {"unit": "experts-00007", "reason": "x", "epoch": 1, "fingerprint": fingerprint}
        (out / "experts-00007.failed.json").write_text(json.dumps(failure))
        (out / "unfinished").mkdir()
        facts = {"plan": {"fingerprint": fingerprint, "experts": [8]}, "after": -1, "epochs": [0, 1],
                 "accuracies": [[0.1], [0.2]], "losses": [[1.0, 0.5]]}  # fmt: skip
        theta = np.zeros((2, 1, 50), np.float32)
        np.savez(out / "unfinished" / "experts-00008-p0-e0001.npz", facts=np.array(json.dumps(facts)), thetas=theta)
    _make_data(folder)


def _make_data(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from rayd.artifact.png import png
    from rayd.data.config import DataConfig
    from rayd.data.prepare import prepare
    from tests.support.worlds import tiny

    images = tiny(12)
    pictures = [png(image) for image in images.pixels_NCHW]
    for part in ("train", "val"):
        (folder / "webdataset" / "tars").mkdir(parents=True, exist_ok=True)
        with tarfile.open(folder / "webdataset" / "tars" / f"{part}-0.tar", "w") as tar:
            for i, picture in enumerate(pictures):
                label = int(images.labels_N[i])
                more = ("cls", str(label).encode()) if i % 2 else ("json", json.dumps({"label": label}).encode())
                for ending, data in (("png", picture), more):
                    entry = tarfile.TarInfo(f"{i:03d}.{ending}")
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
        (folder / "parquet" / "table" / "data").mkdir(parents=True, exist_ok=True)
        features = {"image": {"_type": "Image"}, "label": {"names": ["a", "b", "c"], "_type": "ClassLabel"}}
        columns = {"image": [{"bytes": one, "path": "x"} for one in pictures], "label": images.labels_N.tolist()}
        table = pa.table(columns).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        pq.write_table(table, folder / "parquet" / "table" / "data" / f"{part}-0.parquet")
    _make_tensors(folder / "tensors", images.pixels_NCHW.numpy(), images.labels_N.numpy())
    saved = folder / "saved" / "table"
    saved.mkdir(parents=True)
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": "train"}
    (saved / "state.json").write_text(json.dumps(state))
    (saved / "dataset_info.json").write_text(json.dumps({"features": features}))
    with (
        pa.OSFile(str(saved / "data-00000-of-00001.arrow"), "wb") as file,
        pa.ipc.new_stream(file, table.schema) as out,
    ):
        out.write_table(table)
    source = DataConfig(name="webdataset", path=str(folder / "webdataset" / "tars"), size=8, channels=1)
    list(prepare(source, str(folder / "prepared" / "shards"), 5, 1))


def _make_tensors(folder: Path, pixels: Any, labels: Any) -> None:
    from safetensors.numpy import save_file

    for name in ("npz", "npy", "safetensors"):
        (folder / name).mkdir(parents=True)
    both = {"x_train": pixels, "y_train": labels, "x_test": pixels, "y_test": labels}
    np.savez_compressed(folder / "npz" / "digits.npz", **both)
    save_file(both, folder / "safetensors" / "digits.safetensors")
    for name, array in both.items():
        np.save(folder / "npy" / f"{name}.npy", array)


def draw(folder: Path) -> None:
    """The page of a run, whose elements are our own."""
    from rayd.report import report

    report(str(folder))
    Markup.check((folder / "report" / "index.html").read_text())


def read_artifact(folder: Path, rng: random.Random) -> Iterator[Callable[[], object]]:
    import rayd
    from rayd.artifact.export import export
    from rayd.run.verify import verify

    at = str(folder / "artifact")

    def look() -> None:
        artifact = rayd.load(at)
        assert len(artifact.images("network")) == len(artifact.labels) == len(artifact.targets) == len(artifact)
        assert artifact.step_size is None or artifact.step_size == artifact.step_size

    def exported() -> None:
        many = len(rayd.load(at)) > 100  # whose pictures take seconds to compress
        kind = "tensors" if many else rng.choice(("parquet", "webdataset", "folder", "tensors"))
        export(at, str(folder / "export"), kind, rng.choice(("png", "exact")) if kind == "tensors" else "png")
        text = (folder / "export" / "README.md").read_text()
        assert not any(f"<{tag}" in text for tag in ("script", "img", "svg", "b")), "markup in a README"

    yield look
    yield lambda: list(verify(at, scores=False))
    yield exported
    if rng.randrange(REPORTED) == 0:
        yield lambda: draw(folder)


def read_buffer(folder: Path, rng: random.Random) -> Iterator[Callable[[], object]]:
    from rayd.experts.buffer import Buffer, BufferWriter, verify
    from rayd.experts.shards import read_head

    def rows() -> None:
        buffer = Buffer(str(folder))
        for expert in range(min(buffer.experts, 4)):
            buffer.row(expert, buffer.epochs(expert)[-1])
            buffer.segment(expert, buffer.epochs(expert)[0], buffer.last_epoch)

    def continued() -> None:
        store = Buffer(str(folder)).store
        head = read_head(store)
        writer = BufferWriter(store, head["fingerprint"], head["theta"])
        writer.claim()
        for number in range(3):
            commit = writer.committed(f"experts-{number:05d}")
            assert commit is None or commit.bytes >= 0
        writer.failed("experts-00007")
        writer.unfinished("experts-00008", [8]).read(0)
        writer.finish()

    yield rows
    yield lambda: verify(str(folder))
    yield continued


def read_data(name: str) -> Callable[[Path, random.Random], Iterator[Callable[[], object]]]:
    def read(folder: Path, rng: random.Random) -> Iterator[Callable[[], object]]:
        from rayd.data.config import DataConfig
        from rayd.data.load import load
        from rayd.data.transform import Transform

        def used() -> None:
            splits = load(DataConfig(name=name, path=str(folder), max_bad=0.5, val=0.1))
            train = splits.train
            pixels = train.pixels_NCHW[np.arange(min(len(train), 64))]
            assert len(pixels) and int(train.labels_N.min()) >= 0 and int(train.labels_N.max()) < len(train.classes)
            Transform.fit(train, "normalise")(pixels)

        yield used

    return read


READERS: dict[str, Callable[[Path, random.Random], Iterator[Callable[[], object]]]] = {
    "artifact": read_artifact, "buffer": read_buffer, "prepared": read_data("prepared"),
    "webdataset": read_data("webdataset"), "parquet": read_data("parquet"),
    "tensors": read_data("folder"),
    "saved": read_data("folder"),
}  # fmt: skip


TAGS = set(
    re.findall(
        r"\w+",
        """html head meta title style body header h1 h2 p b span div a nav main section code table thead tbody tr th td img
        footer dl dt dd ul li details summary figure figcaption svg g path defs use rect clippath text line polygon circle
        image""",
    )
)


class Markup(HTMLParser):
    """A page holds the elements and attributes of our own pages, and no others."""

    @classmethod
    def check(cls, page: str) -> None:
        reader = cls()
        reader.feed(page)
        reader.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS, f"<{tag}> in a page"
        for name, value in attrs:
            assert not name.startswith("on") and MARK not in name, f"{name}= in a page"
            if name in ("href", "src", "xlink:href"):
                assert (value or "").startswith(("#", "data:image/png;base64,")), f"{name}={value} in a page"
            assert name != "style" or MARK not in (value or ""), f"style={value} in a page"


# ---- one process for a few folders ---------------------------------------------------------------------------------


class Guard:
    """What a process may not do any more once it has begun."""

    def __init__(self, scratch: Path) -> None:
        self.scratch, self.broken = scratch, list[str]()
        cache, own = os.environ.get("RAYD_CACHE", "/nowhere"), ("/dev/", "/proc/self", "/sys/")
        self.writable = (str(scratch), cache)
        python = (sys.prefix, sys.base_prefix, os.path.realpath(sys.base_prefix))
        system = ("/usr/", "/lib", "/proc/", "/etc/localtime", "/etc/mime", os.path.expanduser("~/.cache"))
        self.readable = (*self.writable, *own, str(ROOT), *python, *system)

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in FORBIDDEN:
            ours = next((frame for frame in _frames(sys._getframe(1)) if "/rayd/" in frame.f_code.co_filename), None)
            self.broken.append(f"{event} {arguments!r:.80} from {ours.f_code if ours else '?'}")
        elif event == "exec" and str(getattr(arguments[0], "co_filename", "")).startswith(str(self.scratch)):
            self.broken.append(f"executed {arguments[0]}")
        elif event == "open" and isinstance(arguments[0], str) and isinstance(arguments[2], int):
            path, flags = os.path.abspath(arguments[0]), arguments[2]
            writing = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            if not path.startswith(self.writable if writing else self.readable) and path != "/dev/null":
                self.broken.append(f"{'wrote' if writing else 'read'} {path}")


def _frames(frame: Any) -> Iterator[Any]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def limit() -> None:
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    inner = [frame for frame in frames if "/rayd/" in frame.filename and "/tests/" not in frame.filename]
    last = inner[-1] if inner else frames[-1]
    return f"{type(error).__name__}: {str(error)[:160]} at {last.filename.rpartition('/rayd/')[2]}:{last.lineno} {last.name}"


def read_one(kind: str, corpus: Path, scratch: Path, seed: int, guard: Guard | None) -> tuple[str, list[str]]:
    """What was changed, and what went wrong."""
    from rayd.errors import Failed, Refused

    rng = random.Random(-1 - seed)
    source = rng.choice(sorted((corpus / kind).iterdir()))
    folder = scratch / f"{kind}-{seed}"
    shutil.copytree(source, folder)
    told = mutate(folder, seed) if guard else "nothing"
    wrong: list[str] = []
    for action in READERS[kind](folder, rng):
        if guard:
            guard.broken.clear()
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            action()
        except (Refused, Failed) as error:
            if not guard:
                raise
            if not str(error).strip():
                wrong.append(f"{where(error)} (says nothing)")
        except Exception as error:  # whatever it is, it is what is looked for
            wrong.append(where(error))
        if guard:
            wrong += guard.broken
    shutil.rmtree(folder, ignore_errors=True)
    return f"{source.name}: {told}", wrong


def child(kind: str, corpus: Path, scratch: Path, seeds: range, answers: int) -> None:
    """Never returns."""
    limit()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    guard = Guard(scratch)
    sys.addaudithook(guard.hear)
    with open(answers, "w") as pipe:
        for seed in seeds:
            print(json.dumps({"seed": seed}), file=pipe, flush=True)
            told, wrong = read_one(kind, corpus, scratch, seed, guard)
            print(json.dumps({"seed": seed, "told": told, "wrong": wrong}), file=pipe, flush=True)
    os._exit(0)


def read_many(kind: str, corpus: Path, scratch: Path, seeds: range) -> list[dict[str, Any]]:
    """Of these seeds, those with which something went wrong."""
    wrong: list[dict[str, Any]] = []
    at = seeds.start
    while at < seeds.stop:
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read)
            child(kind, corpus, scratch, range(at, min(at + BATCH, seeds.stop)), write)
        os.close(write)
        end = min(at + BATCH, seeds.stop)
        with open(read) as pipe:
            while True:
                ready, _, _ = select.select([pipe], [], [], 10 * SECONDS * 4)
                if not ready:
                    os.kill(pid, signal.SIGKILL)
                line = pipe.readline()
                if not line:
                    break
                answer = json.loads(line)
                at = answer["seed"] + ("wrong" in answer)
                if answer.get("wrong"):
                    wrong.append(answer)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code != 0:
            why = {-signal.SIGPROF: f"more than {SECONDS} s", -signal.SIGKILL: "hung"}.get(code, f"ended with {code}")
            wrong.append({"seed": at, "told": "see mutate(folder, seed)", "wrong": [why]})
            at += 1
        elif at < end:
            at = end
    return wrong


# ---- from a test ---------------------------------------------------------------------------------------------------


class Readers(Server):
    """The process that forks the readers."""

    def read(self, kind: str, first: int, count: int) -> list[dict[str, Any]]:
        """What went wrong with the mutations of these seeds."""
        wrong: list[dict[str, Any]] = self.ask({"kind": kind, "first": first, "count": count})
        return wrong


@contextlib.contextmanager
def readers(folder: Path) -> Iterator[Readers]:
    with serving("tests.support.strangers", folder) as process:
        yield Readers(process)


def main(folder: Path) -> None:
    corpus, scratch = folder / "corpus", folder / "scratch"
    make_corpus(corpus)
    scratch.mkdir()
    warm: set[str] = set()
    for line in sys.stdin:
        asked = json.loads(line)
        for seed in range(0 if asked["kind"] in warm else 6):  # imports, and that what is not changed is read
            told, wrong = read_one(asked["kind"], corpus, scratch, seed, None)
            assert not wrong, (asked["kind"], told, wrong)
        if asked["kind"] == "artifact" and not warm & {"artifact"}:
            draw(shutil.copytree(corpus / "artifact" / "pixel", scratch / "drawn"))
        warm.add(asked["kind"])
        seeds = range(asked["first"], asked["first"] + asked["count"])
        print(json.dumps(read_many(asked["kind"], corpus, scratch, seeds)), file=sys.__stdout__, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
