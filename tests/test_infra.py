"""What infra/ holds, as far as it can be proved offline: schemas, Ray's own validation, what must not be in it."""

from __future__ import annotations

import ast
import contextlib
import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

ROOT = Path(__file__).resolve().parents[1]
INFRA = ROOT / "infra"
SCHEMAS = {path.name: json.loads(path.read_text()) for path in sorted((INFRA / "schemas").glob("*.json"))}
REGISTRY: Registry[Any] = Registry().with_resources((n, Resource.from_contents(s)) for n, s in SCHEMAS.items())
MANIFESTS = sorted((INFRA / "kuberay").glob("*.yaml"))


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def errors(document: Any, schema: str) -> list[str]:
    validator = Draft202012Validator(SCHEMAS[schema], registry=REGISTRY)
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]


def pods(document: Any) -> Iterator[dict[str, Any]]:
    """Every pod specification of a manifest."""
    if isinstance(document, dict):
        if "containers" in document:
            yield document
        for value in document.values():
            yield from pods(value)
    elif isinstance(document, list):
        for value in document:
            yield from pods(value)


@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas_are_schemas(name: str) -> None:
    Draft202012Validator.check_schema(SCHEMAS[name])


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifests_fit_their_schema(path: Path) -> None:
    document = load(path)
    assert errors(document, f"{document['kind'].lower()}.json") == []


def patched(document: Any, patch: Any) -> Any:
    """As `kubectl patch --type merge` does it (RFC 7386)."""
    if not isinstance(document, dict) or not isinstance(patch, dict):
        return patch
    both = {
        key: patched(document.get(key), value) if isinstance(value, dict) else value for key, value in patch.items()
    }
    return {key: value for key, value in {**document, **both}.items() if value is not None}


VARIANTS = sorted((INFRA / "kuberay" / "variants").glob("*.yaml"))


@pytest.mark.parametrize("path", VARIANTS, ids=lambda path: path.name)
def test_variants_of_the_job_fit_its_schema(path: Path) -> None:
    job = load(INFRA / "kuberay" / "job.yaml")
    variant = patched(job, load(path))
    assert errors(variant, "rayjob.json") == [] and variant != job
    assert variant["spec"]["entrypoint"] == job["spec"]["entrypoint"]
    assert path.name in (INFRA / "README.md").read_text()


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not here (Debian: kubernetes-client)")
@pytest.mark.parametrize("path", VARIANTS, ids=lambda path: path.name)
def test_a_variant_as_a_user_types_it(path: Path) -> None:
    """The README's own line, up to its pipe to `kubectl apply`."""
    (line,) = re.findall(r"^(kubectl patch .*) \| kubectl apply -f -$", (INFRA / "README.md").read_text(), re.M)
    words = shlex.split(line.replace("infra/kuberay/variants/kueue.yaml", str(path)))
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout) == patched(load(INFRA / "kuberay" / "job.yaml"), load(path))


def test_a_variant_that_the_operator_refuses_is_caught() -> None:
    rules = load(INFRA / "kuberay" / "variants" / "deletion.yaml")
    del rules["spec"]["shutdownAfterJobFinishes"]
    assert len(errors(patched(load(INFRA / "kuberay" / "job.yaml"), rules), "rayjob.json")) == 1
    assert patched({"a": {"b": 1, "c": 2}}, {"a": {"b": None}}) == {"a": {"c": 2}}


def test_machines_over_ssh(tmp_path: Path) -> None:
    """The token goes by standard input to every machine, head first; then Ray starts, in token mode, with the labels."""
    log = tmp_path / "log"
    (tmp_path / "ssh").write_text(f'#!/bin/sh\necho "$1: $2 < $(cat)" >> {log}\n')
    (tmp_path / "ssh").chmod(0o755)
    (tmp_path / "token").write_text("secret")
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token"), "HOME": str(tmp_path)}

    def run(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [str(INFRA / "static.sh"), *words]
        return subprocess.run(command, env={**env, **more}, capture_output=True, text=True, timeout=60, check=False)

    done = run("start", "me@head", "one", "two", RAYD_LABELS="ray.io/market-type=spot")
    assert done.returncode == 0 and "export RAY_AUTH_MODE=token" in done.stdout, done.stderr
    lines = log.read_text().splitlines()
    assert [line.split(":")[0] for line in lines] == ["me@head", "one", "two", "me@head", "one", "two"]
    assert all(line.endswith("< secret") for line in lines[:3]) and not any("secret" in line for line in lines[3:])
    assert (
        "RAY_AUTH_MODE=token ray start" in lines[3]
        and "--head" in lines[3]
        and "--dashboard-host=127.0.0.1" in lines[3]
    )
    assert "--address=head:6379 --labels='ray.io/market-type=spot'" in lines[4]
    log.unlink()
    assert run("stop", "head", "one").returncode == 0
    assert [line.split(":")[0] for line in log.read_text().splitlines()] == ["one", "head"]
    (tmp_path / "token").unlink()
    assert run("start", "head").returncode == 2 and run("begin", "head").returncode == 2 and run().returncode == 2


BROKEN: tuple[tuple[str, Any], ...] = (
    ("spec.workerGroupSpecs.0.maxReplica", 4),
    ("spec.headGroupSpec.rayStartParams.num-cpus", 0),
    ("spec.authOptions.mode", "tokens"),
    ("spec.headGroupSpec.template.spec.containers.0.resources.limits.memory", "8 GB"),
    ("spec.workerGroupSpecs.0.template.spec.containers.0.image", "registry.example.com/rayd"),
    ("spec.autoscalerOptions.version", 2),
)


@pytest.mark.parametrize(("where", "value"), BROKEN, ids=lambda item: str(item))
def test_a_broken_manifest_is_caught(where: str, value: Any) -> None:
    document = load(INFRA / "kuberay" / "cluster.yaml")
    *parents, last = where.split(".")
    holder: Any = json.loads(json.dumps(document))
    whole = holder
    for key in parents:
        holder = holder[int(key)] if key.isdigit() else holder[key]
    holder[last] = value
    assert len(errors(whole, "raycluster.json")) == 1


def test_ray_accepts_cluster_yaml() -> None:
    """Ray's own reading of it; what `ray up` does before it talks to a cloud."""
    code = (
        "import sys, yaml\n"
        "from ray.autoscaler._private.util import prepare_config, validate_config\n"
        "config = yaml.safe_load(sys.stdin)\n"
        "validate_config(prepare_config(config))\n"
        "print(sorted(config['available_node_types']))\n"
    )

    def check(text: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-c", code]
        return subprocess.run(words, input=text, capture_output=True, text=True, timeout=120, check=False)

    text = (INFRA / "cluster.yaml").read_text()
    assert check(text).stdout.strip() == "['gpu', 'head']"
    assert check(text.replace("upscaling_speed", "upscale_speed")).returncode != 0


def test_every_cluster_asks_for_the_token() -> None:
    for name in ("cluster", "job"):
        document = load(INFRA / "kuberay" / f"{name}.yaml")
        spec = document["spec"].get("rayClusterSpec", document["spec"])
        assert spec["authOptions"] == {"mode": "token", "secretName": "rayd-token"}
        assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    up = load(INFRA / "cluster.yaml")
    for command in up["head_start_ray_commands"] + up["worker_start_ray_commands"]:
        if "ray start" in command:
            assert command.index("RAY_AUTH_MODE=token") < command.index("ray start")
    assert "--dashboard-host=127.0.0.1" in " ".join(up["head_start_ray_commands"])
    assert "RAY_AUTH_MODE=token" in (INFRA / "Dockerfile").read_text()


@pytest.mark.parametrize("name", ["cluster", "job"])
def test_pods_run_as_a_user_behind_the_policy(name: str) -> None:
    document = load(INFRA / "kuberay" / f"{name}.yaml")
    found = list(pods(document))
    assert len(found) >= 2
    for pod in found:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert not pod.get("hostNetwork", False)
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]
    chosen = load(INFRA / "kuberay" / "network.yaml")["spec"]["podSelector"]["matchLabels"]
    labels = re.findall(r"labels: (\{.*\})", (INFRA / "kuberay" / f"{name}.yaml").read_text())
    assert len(labels) == len(found)
    assert all(yaml.safe_load(label).items() >= chosen.items() for label in labels)


def test_workers_scale_to_zero() -> None:
    group = load(INFRA / "kuberay" / "cluster.yaml")["spec"]["workerGroupSpecs"][0]
    assert group["minReplicas"] == group["replicas"] == 0
    gpu = load(INFRA / "cluster.yaml")["available_node_types"]["gpu"]
    assert gpu["min_workers"] == 0
    assert gpu["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}


def test_no_secret_is_in_a_file() -> None:
    for path in INFRA.rglob("*"):
        if path.is_file():
            text = path.read_text()
            assert not re.search(r"kind: Secret\b|stringData:|BEGIN [A-Z ]*PRIVATE KEY|AKIA[0-9A-Z]{16}", text), path
            assert not re.search(r"RAY_AUTH_TOKEN[= ]+[\"']?[0-9a-f]{16}", text), path


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, continued lines joined."""
    lines = [line for line in (INFRA / "Dockerfile").read_text().splitlines() if line.strip() and line[0] != "#"]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in joined.splitlines()]


def test_the_dockerfile_is_sane() -> None:
    steps = instructions()
    names = [name for name, _ in steps]
    assert names[0] == "FROM" and ":" in steps[0][1] and "latest" not in steps[0][1]
    assert [value for name, value in steps if name == "USER"] == ["ray"]
    assert names.index("USER") > max(i for i, name in enumerate(names) if name == "RUN")
    assert ("ARG", "VARIANT=cpu") in steps
    ignored = (INFRA / "Dockerfile.dockerignore").read_text().splitlines()
    for _, value in (step for step in steps if step[0] == "COPY"):
        for source in [word for word in shlex.split(value) if not word.startswith("--")][:-1]:
            assert (ROOT / source).exists(), source
            assert f"!{source}" in ignored, f"{source} is not in the build's context"
    for name, value in steps:
        if name == "RUN":
            assert subprocess.run(["sh", "-n", "-c", value], check=False).returncode == 0
            assert "pip install" not in value or "--constraint" in value
    python = re.search(r"python:(\d+\.\d+)", steps[0][1])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert python is not None and f">={python[1]}" in project["requires-python"]
    asked = re.search(r"rayd\[([a-z,]+)\]", (INFRA / "Dockerfile").read_text())
    assert asked is not None and set(asked[1].split(",")) <= set(project["optional-dependencies"])


def test_the_variant_is_checked() -> None:
    case = next(v for n, v in instructions() if n == "RUN" and "VARIANT" in v).split("&&")[0]
    for variant, code in (("cpu", 0), ("cuda", 0), ("gpu", 2)):
        done = subprocess.run(["sh", "-c", case], env={"VARIANT": variant}, capture_output=True, text=True, check=False)
        assert done.returncode == code
    assert "allowed is cpu or cuda" in done.stderr


def exported() -> set[str]:
    """The names of the metrics that the fleet makes."""
    made = set()
    for path in (ROOT / "rayd" / "fleet").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("Counter", "Gauge", "Histogram")):
                first = node.args[0] if node.args else None
                if isinstance(first, ast.Constant) and str(first.value).startswith("rayd_"):
                    made.add(str(first.value))
    return made


def plain(names: set[str]) -> set[str]:
    """Our metrics among these, as they are named in the code."""
    return {re.sub(r"_(total|bucket|sum|count)$", "", name.removeprefix("ray_")) for name in names if "_rayd_" in name}


def test_the_alerts_ask_for_what_is_exported() -> None:
    config = load(INFRA / "prometheus" / "prometheus.yml")
    (name,) = config["rule_files"]
    rules = [rule for group in load(INFRA / "prometheus" / name)["groups"] for rule in group["rules"]]
    assert len(rules) >= 4 and len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        names = set(re.findall(r"\b(?:ray|autoscaler)_[a-z0-9_]+", rule["expr"]))
        assert plain(names) <= exported() and len(plain(names)) == len(names) == 1, rule["expr"]
        assert re.fullmatch(r"(max|sum)\(.*\)( by \(\w+\))? > \d+", rule["expr"]), rule["expr"]
        assert rule["annotations"]["summary"]


def verdict_of(series: dict[str, list[Any]], every: float, alerts: dict[str, dict[str, str]], folder: Path) -> str:
    """What promtool says of these series if exactly these alerts (name: labels) fire at their end; empty where it agrees."""
    rules = [rule for group in load(INFRA / "prometheus" / "alerts.yml")["groups"] for rule in group["rules"]]
    length = max(map(len, series.values()))
    expected = []
    for rule in rules:
        labels = alerts.get(rule["alert"])
        summary = rule["annotations"]["summary"].replace("{{ $labels.stage }}", (labels or {}).get("stage", ""))
        fires = [{"exp_labels": labels, "exp_annotations": {"summary": summary}}] if labels is not None else []
        at = f"{round(every * (length - 1))}s"
        expected.append({"eval_time": at, "alertname": rule["alert"], "exp_alerts": fires})
    values = [
        {"series": name, "values": " ".join("_" if one is None else repr(one) for one in line)}
        for name, line in series.items()
    ]
    case = {"interval": f"{every:g}s", "input_series": values, "alert_rule_test": expected}
    case_of = {"rule_files": [str(INFRA / "prometheus" / "alerts.yml")], "evaluation_interval": "5s", "tests": [case]}
    (folder / "case.yml").write_text(yaml.safe_dump(case_of))
    done = subprocess.run(
        ["promtool", "test", "rules", str(folder / "case.yml")], capture_output=True, text=True, timeout=60, check=False
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


FIRES: dict[str, dict[str, dict[str, str]]] = {
    "healthy": {}, "hung": {"RaydHung": {"stage": "experts"}}, "failing": {"RaydUnitsLost": {}},
}  # fmt: skip


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not here (Debian: prometheus)")
def test_the_alerts_of_recorded_runs(tmp_path: Path) -> None:
    """Of real runs as tests/support/metrics.py recorded them; and of what no run may show: no watchdog, many warnings."""
    runs = json.loads((ROOT / "tests" / "support" / "metrics.json").read_text())
    assert set(runs) == set(FIRES)
    for name, run in runs.items():
        assert verdict_of(run["series"], run["every"], FIRES[name], tmp_path) == "", name
    assert verdict_of(runs["hung"]["series"], 5.0, {}, tmp_path) != "", "promtool tells the difference"
    stuck = {'ray_rayd_beat_age_seconds{stage="distill"}': [15.0 * i for i in range(60)]}
    assert verdict_of(stuck, 15.0, {"RaydNoBeat": {"stage": "distill"}}, tmp_path) == ""
    warned = {'ray_rayd_warnings_total{stage="distill"}': [None, *(1.0 + i for i in range(20))]}
    assert verdict_of(warned, 15.0, {"RaydWarnings": {"stage": "distill"}}, tmp_path) == ""


def test_the_dashboard_asks_for_what_is_exported_and_for_all_of_it() -> None:
    dashboard = json.loads((INFRA / "grafana" / "rayd.json").read_text())
    assert errors(dashboard, "dashboard.json") == []
    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
        for name in re.findall(r"\b(?:ray|autoscaler)_[a-z0-9_]+", target["expr"])
    }
    assert plain(asked) == exported(), "every metric has a panel, every panel a metric"
    import ray

    folder = Path(ray.__file__).parent / "dashboard" / "modules" / "metrics" / "dashboards"
    theirs = " ".join(path.read_text() for path in folder.glob("*.py"))
    assert [name for name in asked if "_rayd_" not in name and not re.search(rf"\b{name}\b", theirs)] == []
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)


def test_prometheus_reads_rays_own_list() -> None:
    config = load(INFRA / "prometheus" / "prometheus.yml")
    assert errors(config, "prometheus.json") == []
    from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

    (found,) = config["scrape_configs"][0]["file_sd_configs"][0]["files"]
    assert Path(found).name == PROMETHEUS_SERVICE_DISCOVERY_FILE


@pytest.fixture
def metadata() -> Iterator[tuple[str, list[bool]]]:
    """A cloud's metadata service on this machine: `notice[0]` says whether the instance is to stop. Its first answers come
    too late."""
    notice, slow = [False], [2]

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            if slow[0]:
                slow[0] -= 1
                time.sleep(2.5)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self._answer(200, b"session")

        def do_GET(self) -> None:
            assert self.headers["X-aws-ec2-metadata-token"] == "session"
            self._answer(200 if notice[0] else 404, b"{}")

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", notice
    server.shutdown()
    server.server_close()


def test_a_spot_notice_drains_the_node(tmp_path: Path, metadata: tuple[str, list[bool]]) -> None:
    url, notice = metadata
    told = tmp_path / "told"
    fake = tmp_path / "ray"
    fake.write_text(f'#!/bin/sh\necho "$@" > {told}\n')
    fake.chmod(0o755)
    words = [sys.executable, str(INFRA / "drain.py"), "--watch", "--endpoint", url, "--every", "0.05"]
    watch = subprocess.Popen(words, env={"PATH": str(tmp_path)})
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            watch.wait(7.0)
        assert not told.exists()
        notice[0] = True
        assert watch.wait(20) == 0
    finally:
        watch.kill()
    assert "drain-node --reason DRAIN_NODE_REASON_PREEMPTION" in told.read_text()


def test_the_hook_of_a_pod_waits_for_the_work(tmp_path: Path) -> None:
    """Until no process of Ray works on the node, and no longer than the time that is left, of which Ray is told less."""
    fake, told = tmp_path / "ray", tmp_path / "told"
    fake.write_text(f'#!/bin/sh\necho "$@" > {told}\n')
    fake.chmod(0o755)
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / "cmdline").write_bytes(b"ray::IDLE\0")
    at_work = tmp_path / "1" / "cmdline"
    at_work.write_bytes(b"ray::ExpertActor.build\0")
    words = [sys.executable, str(INFRA / "drain.py"), "--wait", "--proc", str(tmp_path), "--seconds"]
    began = time.monotonic()
    assert subprocess.run([*words, "3"], env={"PATH": str(tmp_path)}, timeout=60, check=False).returncode == 0
    assert 2.9 < time.monotonic() - began < 30
    assert told.read_text().endswith("--deadline-remaining-seconds 0\n")
    hook = subprocess.Popen([*words, "600"], env={"PATH": str(tmp_path)})
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            hook.wait(2.0)
        at_work.unlink()
        assert hook.wait(30) == 0
        assert told.read_text().endswith("--deadline-remaining-seconds 590\n")
    finally:
        hook.kill()


def test_the_job_asks_for_what_its_cluster_has() -> None:
    """Its command waits for nodes, names its data, and runs where no rights of the operator's are."""
    spec = load(INFRA / "kuberay" / "job.yaml")["spec"]
    words = shlex.split(spec["entrypoint"])
    assert words[:3] == ["python", "-m", "jobs.pipeline"] and "scale=cluster" in words
    assert {word.split("=")[0] for word in words} >= {"scale.wait", "scale.actors", "data.path", "out"}
    groups = {group["groupName"]: group for group in spec["rayClusterSpec"]["workerGroupSpecs"]}
    offered = json.loads(json.loads(groups["driver"]["rayStartParams"]["resources"]))
    assert json.loads(spec["entrypointResources"]) == offered and groups["driver"]["replicas"] == 1
    assert groups["driver"]["template"]["spec"]["automountServiceAccountToken"] is False
    wanted = int(next(word.split("=")[1] for word in words if word.startswith("scale.actors=")))
    assert wanted <= groups["gpu"]["maxReplicas"]
    from jobs.compose import ask
    from rayd.fleet.cluster import bundle
    from rayd.fleet.policy import capacity

    run = ask("pipeline", tuple(words[3:])).run
    limits = groups["gpu"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    node = {"CPU": float(limits["cpu"]), "GPU": float(limits["nvidia.com/gpu"])}
    assert capacity(bundle(run.scale), [node] * groups["gpu"]["maxReplicas"]) >= max(wanted, run.scale.workers)


@pytest.mark.parametrize("name", ["cluster", "job"])
def test_the_object_store_fits_its_memory_and_the_cache_is_the_nodes(name: str) -> None:
    document = load(INFRA / "kuberay" / f"{name}.yaml")
    cluster = document["spec"].get("rayClusterSpec", document["spec"])
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        volumes = {volume["name"]: volume for volume in group["template"]["spec"]["volumes"]}
        assert int(group["rayStartParams"]["object-store-memory"]) < 2 * 2**30
        assert volumes["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "2Gi"}
        (container,) = group["template"]["spec"]["containers"]
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        cache = next(variable["value"] for variable in container["env"] if variable["name"] == "RAYD_CACHE")
        assert "emptyDir" in volumes[mounts[cache]]


def test_no_notice_where_there_is_no_cloud(tmp_path: Path) -> None:
    words = [sys.executable, str(INFRA / "drain.py"), "--watch", "--endpoint", "http://127.0.0.1:9", "--every", "0.01"]
    done = subprocess.run(words, env={"PATH": str(tmp_path)}, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0 and "nothing to watch" in done.stderr
