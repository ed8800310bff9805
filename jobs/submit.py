"""Submit a verb to a cluster: check its command here, upload the code, follow the log, end with the job's exit code.

`python -m jobs.submit VERB KEY=VALUE ... submit.KEY=VALUE ...`. A command that is wrong is refused before anything is
uploaded. Ctrl-C leaves the job running; `submit.follow=ID` follows it again. The job server is the one that
RAY_API_SERVER_ADDRESS names; Ray sends the token of RAY_AUTH_MODE=token.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from jobs import program
from jobs.compose import CONFIGS, ask, exit_code

if TYPE_CHECKING:
    from rayd.fleet.submission import Submission

KEYS = "rayd.fleet.submission:Keys"
VERBS = (
    "doctor", "prepare", "plan", "experts", "distill", "evaluate", "report", "export", "pipeline", "search", "auto",
    "continual", "theory",
)  # fmt: skip
ROOT = CONFIGS.parent if (CONFIGS.parent / "pyproject.toml").is_file() else None
"""The checkout that is uploaded; none where rayd was installed, which the nodes then have as well, or get by uv or pip."""
LARGEST = 10
INTERRUPTED = 130
"""A shell's code of a command that Ctrl-C ended."""


def main(argv: Sequence[str]) -> int:
    if "--help" in argv or "-h" in argv:
        from jobs.help import answer

        print(answer("submit", __doc__ or "", KEYS, [word for word in argv if word not in ("--help", "-h")][1:]))
        return 0
    return exit_code(lambda: submitted(argv))


def submitted(argv: Sequence[str]) -> int:
    from rayd.errors import refuse

    words = [word for word in argv if not word.startswith("submit.")]
    own: Submission = ask("submit", tuple(word for word in argv if word.startswith("submit.")), KEYS).own.submit
    if own.follow:
        from rayd.fleet.submit import connect

        return followed(connect(own.address), own.follow)
    if not words or words[0] not in VERBS:
        raise refuse("verb", words[0] if words else "(missing)", " | ".join(VERBS), "see python -m jobs.submit --help")
    verb, *rest = words
    asked = ask(verb, tuple(rest), getattr(import_module(f"{__package__}.{verb}"), "KEYS", ""))
    if asked.run.scale.name != "cluster":
        raise refuse("scale", asked.run.scale.name, "cluster for a job that is submitted", "add scale=cluster")
    line = "python -m jobs." + verb if own.env == "image" else program(verb)
    return sent(own, f"{line} {shlex.join(rest)}")


def sent(own: Submission, entrypoint: str) -> int:
    """Measure, upload, submit, follow."""
    from rayd.fleet.submit import connect, packed, start
    from rayd.numbers import size_text

    if own.env != "image" and ROOT is not None:
        size, files = packed(ROOT)
        say(f"upload of {size_text(size)}, {len(files)} files; the largest:")
        for name, bytes in files[:LARGEST]:
            say(f"  {size_text(bytes):>9}  {name}")
    client = connect(own.address)
    job = start(
        client, own.command(entrypoint), own.environment(ROOT), submission_id=own.id, entrypoint_num_cpus=own.cpus
    )
    say(f"submitted {job}: {entrypoint}")
    if not own.wait:
        say(again(job))
        return 0
    return followed(client, job)


def followed(client: Any, job: str) -> int:
    """The log on standard output, then the job's exit code."""
    from rayd.fleet.submit import ended, follow

    try:
        for piece in follow(client, job):
            sys.stdout.write(piece)
            sys.stdout.flush()
        code, how = ended(client, job)
    except KeyboardInterrupt:
        say(f"{job} goes on. {again(job)}")
        return INTERRUPTED
    say(f"{job} {how}")
    return code


def again(job: str) -> str:
    return f"Follow it: python -m jobs.submit submit.follow={job}   Stop it: ray job stop {job}"


def say(text: str) -> None:
    print(f"rayd: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
