"""A job's way to a cluster: what is uploaded, the submission through Ray's job server, its log, its exit code."""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
import zipfile
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

from aiohttp import ClientError
from ray._private.runtime_env.packaging import GCS_STORAGE_MAX_SIZE, create_package
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from rayd.errors import Failed, Refused, refuse
from rayd.fleet.tasks import first_line
from rayd.numbers import size_text

AGAIN = 60.0
"""Seconds for which a job server that does not answer is asked again: a port that is forwarded comes back by itself."""
BETWEEN = 1.0
OVER = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED)
quiet = logging.getLogger("rayd.packing")
quiet.setLevel(logging.ERROR)


def packed(folder: Path) -> tuple[int, list[tuple[str, int]]]:
    """Bytes that Ray uploads of a folder, .rayignore and .gitignore applied, and its files with theirs, largest first."""
    with tempfile.TemporaryDirectory() as scratch:
        package = Path(scratch) / "package.zip"
        create_package(str(folder), package, include_gitignore=True, excludes=[], logger=quiet)
        with zipfile.ZipFile(package) as entries:
            files = [(entry.filename, entry.compress_size) for entry in entries.infolist() if not entry.is_dir()]
        size = package.stat().st_size
    files.sort(key=lambda file: (-file[1], file[0]))
    if size >= GCS_STORAGE_MAX_SIZE:
        names = ", ".join(f"{name} {size_text(bytes)}" for name, bytes in files[:3])
        raise Refused(
            f"upload: {size_text(size)}; Ray takes less than {size_text(GCS_STORAGE_MAX_SIZE)}. Name in .rayignore what a "
            f"job does not need; the largest files are {names}"
        )
    return size, files


def connect(address: str | None) -> JobSubmissionClient:
    """The job server at `address`; none: where RAY_API_SERVER_ADDRESS or a cluster on this machine says."""
    logging.getLogger("ray").setLevel(logging.WARNING)
    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise _no_token(error) from error
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = address or "RAY_API_SERVER_ADDRESS, or a cluster on this machine"
        do = "`ray dashboard` or `kubectl port-forward` forwards it to http://localhost:8265"
        raise refuse("submit.address", where, "a job server that answers", f"{first_line(error)}; {do}") from error


def _no_token(error: AuthenticationError) -> Refused:
    return Refused(
        f"the job server refuses this token ({first_line(error)}); set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH or "
        "~/.ray/auth_token to the cluster's own"
    )


def start(client: JobSubmissionClient, entrypoint: str, environment: Mapping[str, Any], **more: Any) -> str:
    """Upload, submit; the id of the job. `more`: as JobSubmissionClient.submit_job has it."""
    try:
        return client.submit_job(entrypoint=entrypoint, runtime_env=dict(environment), **more)
    except AuthenticationError as error:
        raise _no_token(error) from error
    except (ConnectionError, RuntimeError) as error:
        raise Failed(f"the job was not submitted: {error}") from error


def follow(client: JobSubmissionClient, job: str) -> Iterator[str]:
    """The job's log from its beginning, in pieces, until the job is over. A lost connection is made again."""
    shown, lost = 0, 0.0
    with asyncio.Runner() as runner:
        while True:
            skip, pieces = shown, client.tail_job_logs(job)
            try:
                while (piece := runner.run(_next(pieces))) is not None:
                    lost, fresh = 0.0, piece[skip:]
                    skip = max(0, skip - len(piece))
                    shown += len(fresh)
                    if fresh:
                        yield fresh
                if _over(client, job):
                    return
            except (RuntimeError, ClientError, OSError) as error:
                lost = lost or time.monotonic()
                if time.monotonic() - lost > AGAIN:
                    why = f"the job server has not answered for {AGAIN:g} s ({first_line(error)})"
                    raise Failed(f"{job}: {why}; the job goes on without us") from error
            time.sleep(BETWEEN)


async def _next(pieces: AsyncIterator[str]) -> str | None:
    return await anext(pieces, None)


def _over(client: JobSubmissionClient, job: str) -> bool:
    return client.get_job_status(job) in OVER


def ended(client: JobSubmissionClient, job: str) -> tuple[int, str]:
    """The exit code of a job that is over, its own where it had one, and how it ended in a word."""
    while not _over(client, job):
        time.sleep(BETWEEN)
    details = client.get_job_info(job)
    code = details.driver_exit_code
    if details.status == JobStatus.SUCCEEDED:
        return 0, "succeeded"
    if details.status == JobStatus.STOPPED:
        return 1, "was stopped"
    if code is None:
        return 1, f"failed before its command ran: {details.message}"
    return (code if code > 0 else 1), f"failed with exit code {code}"
