"""What is in deploy/: valid, and true of the programs that it starts; and nobody but the gateway reaches vLLM."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import compose_spec
import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import typer
import typer.main
import yaml

from thinkserve.cli import app
from thinkserve.engines.vllm import check_vllm_args
from thinkserve.errors import UsageError
from thinkserve.gateway.keys import read_keys
from thinkserve.gateway.sealing import new_seal_key, read_seal_keys

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
FOLDERS = ("base", "ray")
# The oldest release that is still looked after, and the newest that the validator knows.
RELEASES = ("1.32", "1.37")
POLICY_PORTS = (8000, 6379, 10001)
# What the rest of the world looks like to a NetworkPolicy, in our namespace.
STRANGER = {"app.kubernetes.io/name": "something-else"}

JSON = dict[str, Any]


@cache
def manifests(folder: str) -> list[JSON]:
    """What `kubectl apply -k` would apply."""
    kubectl = shutil.which("kubectl")
    if kubectl is not None:
        built = subprocess.run(
            [kubectl, "kustomize", KUBERNETES / folder], capture_output=True, text=True, check=True
        ).stdout
        return list(yaml.safe_load_all(built))
    if folder != "base":
        pytest.skip("kubectl is not installed: what the patches of this folder give is not known")
    resources = yaml.safe_load((KUBERNETES / folder / "kustomization.yaml").read_text())["resources"]
    return [document for name in resources for document in documents(KUBERNETES / folder / name)]


def documents(path: Path) -> list[JSON]:
    """The objects of a file."""
    return list(yaml.safe_load_all(path.read_text()))


def of_kind(folder: str, *kinds: str) -> list[JSON]:
    """The objects of these kinds."""
    return [document for document in manifests(folder) if document["kind"] in kinds]


def pods(folder: str) -> dict[str, JSON]:
    """The pods that the workloads make, by the workloads' names."""
    return {
        document["metadata"]["name"]: document["spec"]["template"]
        for document in of_kind(folder, "Deployment", "StatefulSet", "DaemonSet", "Job")
    }


def container(folder: str, name: str) -> JSON:
    """The only container of a workload."""
    (only,) = pods(folder)[name]["spec"]["containers"]
    assert isinstance(only, dict)
    return only


@cache
def compose() -> JSON:
    """The compose file, with the default or some value for each variable."""
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (DEPLOY / "compose.yaml").read_text())
    data = yaml.safe_load(re.sub(r"\$\{\w+:\?[^}]*\}", "/srv/value", text))
    assert isinstance(data, dict)
    return data


def gateway_args() -> Iterator[tuple[str, list[str], dict[str, str]]]:
    """Everywhere `thinkserve serve` is started: where, its arguments, its environment."""
    service = compose()["services"]["gateway"]
    assert service["entrypoint"] == ["thinkserve", "serve"]
    yield "compose", service["command"], service.get("environment", {})
    for folder in FOLDERS:
        gateway = container(folder, "thinkserve")
        assert gateway["command"] == ["thinkserve", "serve"]
        yield folder, gateway["args"], {entry["name"]: entry["value"] for entry in gateway["env"]}


def vllm_args() -> Iterator[tuple[str, list[str]]]:
    """Everywhere `vllm serve` is started: where, and its arguments."""
    service = compose()["services"]["vllm"]
    assert service["entrypoint"] == ["vllm", "serve"]
    yield "compose", service["command"]
    for folder in FOLDERS:
        vllm = container(folder, "vllm")
        assert " ".join(vllm["command"]).rpartition("exec ")[2].startswith("vllm serve")
        yield folder, vllm["args"]


def options(args: list[str]) -> dict[str, str]:
    """Options as they are given there: --name=value."""
    return dict(arg.removeprefix("--").partition("=")[::2] for arg in args if arg.startswith("--"))


def serve_parameters(
    args: list[str], env: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """What the command line makes of these arguments; nothing is run."""
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    command = typer.main.get_command(app)
    serve = command.commands["serve"]  # type: ignore[attr-defined]
    known = {parameter.envvar for parameter in serve.params}
    assert set(env) <= known, f"no option reads {set(env) - known}"
    return dict(serve.make_context("serve", list(args)).params)


# Valid


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("folder", FOLDERS)
def test_every_manifest_keeps_to_its_schema(folder: str, release: str) -> None:
    """Strictly: a field that Kubernetes does not know is an error, as it would be passed over."""
    assert manifests(folder)
    for document in manifests(folder):
        kubernetes_validate.validate(document, release, strict=True)


def test_the_example_of_a_secret_keeps_to_its_schema() -> None:
    for document in documents(KUBERNETES / "base" / "secret.example.yaml"):
        kubernetes_validate.validate(document, RELEASES[0], strict=True)


def test_a_misspelt_field_would_be_found() -> None:
    """The validator has the schemas, and is strict."""
    wrong = {**of_kind("base", "Deployment")[0], "sepc": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, RELEASES[0], strict=True)


def test_every_file_is_used() -> None:
    """By a kustomization; but for those that say that they are not."""
    for folder in FOLDERS:
        kustomization = yaml.safe_load((KUBERNETES / folder / "kustomization.yaml").read_text())
        named = {name for name in kustomization["resources"] if name.endswith(".yaml")}
        named |= {patch["path"] for patch in kustomization.get("patches", [])}
        apart = {"kustomization.yaml", "secret.example.yaml", "service-monitor.yaml"}
        assert {path.name for path in (KUBERNETES / folder).glob("*.yaml")} - apart == named


def test_no_manifest_names_a_namespace() -> None:
    """They go wherever they are applied."""
    for folder in FOLDERS:
        assert not [document for document in manifests(folder) if "namespace" in document["metadata"]]


def test_the_compose_file_keeps_to_the_specification() -> None:
    compose_spec.PyCompose.from_yaml(yaml.safe_dump(compose())).validate()
    with pytest.raises(ValueError, match="porst"):
        compose_spec.PyCompose.from_yaml("services: {a: {image: b, porst: []}}").validate()


def test_docker_takes_the_compose_file() -> None:
    """With docker's own reader, where there is one."""
    docker = shutil.which("docker") or ""
    if (
        not docker
        or subprocess.run([docker, "compose", "version"], check=False, capture_output=True).returncode
    ):
        pytest.skip("docker's compose plugin is not installed")
    subprocess.run(
        [docker, "compose", "-f", DEPLOY / "compose.yaml", "config", "-q"],
        env={"CHECKPOINT": "/srv/checkpoint", "PATH": "/usr/bin:/bin"},
        check=True,
    )


def test_what_the_compose_file_mounts_is_there() -> None:
    for service in compose()["services"].values():
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert source in compose()["volumes"] or source == "/srv/value" or (DEPLOY / source).exists()


# True of thinkserve


def test_every_option_of_the_gateway_exists_and_takes_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the command line itself; with at least a key file, a format and somewhere to ask."""
    seen = []
    for where, args, env in gateway_args():
        with monkeypatch.context() as patch:
            given = serve_parameters(args, env, patch)
        assert given["api_keys"] and given["thought_format"] and given["upstream"], where
        assert given["host"] == "0.0.0.0"
        seen.append(where)
    assert seen == ["compose", *FOLDERS]


def test_the_gateway_asks_every_vllm_that_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no other: by name and port."""
    for where, args, env in gateway_args():
        with monkeypatch.context() as patch:
            upstreams = serve_parameters(args, env, patch)["upstream"]
        port = options(dict(vllm_args())[where])["port"]
        if where == "compose":
            hosts = ["vllm"]
        else:
            (vllm,) = (
                found for found in of_kind(where, "StatefulSet") if found["metadata"]["name"] == "vllm"
            )
            service = vllm["spec"]["serviceName"]
            hosts = [f"vllm-{at}.{service}" for at in range(vllm["spec"]["replicas"])]
            assert container(where, "vllm")["ports"] == [{"name": "http", "containerPort": int(port)}]
        assert sorted(upstreams) == [f"http://{host}:{port}" for host in hosts]


def test_streams_may_finish_before_a_gateway_is_killed() -> None:
    """What waits before the signal, the draining, and ten seconds for the workers to end."""
    for where, args, _ in gateway_args():
        drain = float(options(args)["drain-seconds"])
        if where == "compose":
            grace = float(compose()["services"]["gateway"]["stop_grace_period"].removesuffix("s"))
            before = 0.0
        else:
            pod = pods(where)["thinkserve"]["spec"]
            grace = pod["terminationGracePeriodSeconds"]
            program, seconds = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
            assert program == "sleep"
            before = float(seconds)
        assert before + drain + 10 <= grace, where


def test_the_probes_ask_what_the_gateway_answers() -> None:
    """Ready: an engine answers. Alive: the gateway does, whatever the engine does."""
    for folder in FOLDERS:
        gateway = container(folder, "thinkserve")
        assert gateway["readinessProbe"]["httpGet"] == {"path": "/ready", "port": "http"}
        assert gateway["livenessProbe"]["httpGet"] == {"path": "/health", "port": "http"}
        port = int(options(gateway["args"])["port"])
        assert gateway["ports"] == [{"name": "http", "containerPort": port}]
        (service,) = (
            found for found in of_kind(folder, "Service") if found["metadata"]["name"] == "thinkserve"
        )
        assert service["spec"]["ports"][0]["targetPort"] == "http"


def test_the_autoscaler_and_the_budgets_are_about_what_there_is() -> None:
    for folder in FOLDERS:
        (scaler,) = of_kind(folder, "HorizontalPodAutoscaler")
        target = scaler["spec"]["scaleTargetRef"]
        assert (target["kind"], target["name"]) == ("Deployment", "thinkserve")
        # It counts by what a container asks for; and sets the number, which the Deployment then must not.
        assert container(folder, "thinkserve")["resources"]["requests"]["cpu"]
        assert "replicas" not in of_kind(folder, "Deployment")[0]["spec"]
        for budget in of_kind(folder, "PodDisruptionBudget"):
            wanted = budget["spec"]["selector"]["matchLabels"]
            assert any(selected(pod["metadata"]["labels"], wanted) for pod in pods(folder).values())


def test_prometheus_reads_the_gateway_and_nothing_else() -> None:
    """Not vLLM: its port has other routes."""
    (job,) = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
    port = options(compose()["services"]["gateway"]["command"])["port"]
    assert job["metrics_path"] == "/metrics"
    assert job["static_configs"] == [{"targets": [f"gateway:{port}"]}]
    assert (
        "./prometheus.yml:/etc/prometheus/prometheus.yml:ro" in compose()["services"]["prometheus"]["volumes"]
    )
    source = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text())
    assert urlsplit(source["datasources"][0]["url"]).hostname == "prometheus"
    (monitor,) = documents(KUBERNETES / "base" / "service-monitor.yaml")
    assert monitor["spec"]["selector"]["matchLabels"] == {"app.kubernetes.io/name": "thinkserve"}


def test_grafana_finds_its_dashboard_where_the_provisioning_looks() -> None:
    provider = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/thinkserve.yaml").read_text())
    folder = provider["providers"][0]["options"]["path"]
    mounted = [volume.split(":")[1] for volume in compose()["services"]["grafana"]["volumes"]]
    assert "/etc/grafana/provisioning" in mounted
    assert [path for path in mounted if path.startswith(folder + "/")]


def test_the_example_of_a_secret_works_once_it_is_filled_in_and_not_before(tmp_path: Path) -> None:
    """No deployment runs with keys that everybody can read here."""
    (secret,) = documents(KUBERNETES / "base" / "secret.example.yaml")
    volume = next(
        volume for volume in pods("base")["thinkserve"]["spec"]["volumes"] if volume["name"] == "keys"
    )
    assert volume["secret"]["secretName"] == secret["metadata"]["name"]
    assert volume["secret"]["defaultMode"] == 0o440
    for name, text in secret["stringData"].items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(volume["secret"]["defaultMode"])
    with pytest.raises(UsageError):
        read_keys(None, tmp_path / "keys.toml")
    with pytest.raises(UsageError):
        read_seal_keys(tmp_path / "seal.keys")
    filled = re.sub(r'sha256 = ".*"', f'sha256 = "{"a" * 64}"', secret["stringData"]["keys.toml"])
    (tmp_path / "filled.toml").write_text(filled)
    assert read_keys(None, tmp_path / "filled.toml").required
    (tmp_path / "filled.keys").write_text(
        secret["stringData"]["seal.keys"].replace("REPLACE-BY-A-LINE-OF-THINKSERVE-SEAL-KEY", new_seal_key())
    )
    (tmp_path / "filled.keys").chmod(0o440)
    assert read_seal_keys(tmp_path / "filled.keys")
    mounted = {f"/etc/thinkserve/{name}" for name in secret["stringData"]}
    given = options(container("base", "thinkserve")["args"])
    assert {given["api-keys"], given["seal-keys"]} == mounted
    given = options(compose()["services"]["gateway"]["command"])
    assert {given["api-keys"], given["seal-keys"]} == {
        f"/run/secrets/{name}" for name in compose()["secrets"]
    }


# True of vLLM


def test_vllm_runs_so_that_the_gateway_can_hide_thoughts_and_drain() -> None:
    """None of the arguments that thinkserve refuses where it starts vLLM itself; but its address is a network's here."""
    for where, args in vllm_args():
        ours = ("--host", "--port", "--served-model-name")
        check_vllm_args([arg for arg in args if arg.partition("=")[0] not in ours])
        given = options(args)
        assert "disable-fastapi-docs" in given, where
        drain = next(float(options(args)["drain-seconds"]) for at, args, _ in gateway_args() if at == where)
        if where == "compose":
            grace = float(compose()["services"]["vllm"]["stop_grace_period"].removesuffix("s"))
        else:
            grace = pods(where)["vllm"]["spec"]["terminationGracePeriodSeconds"]
        assert drain < float(given["shutdown-timeout"]) < grace, where


def test_all_nodes_of_one_vllm_stay_while_it_drains() -> None:
    worker = pods("ray")["vllm-worker"]["spec"]
    waits = float(worker["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    drains = float(options(container("ray", "vllm")["args"])["shutdown-timeout"])
    assert drains < waits < worker["terminationGracePeriodSeconds"]


def test_ray_has_the_gpus_that_vllm_wants() -> None:
    """Tensor parallel within a node, pipeline parallel over nodes; and the head waits for all of them."""
    workers = next(
        found["spec"]["replicas"]
        for found in of_kind("ray", "StatefulSet")
        if found["metadata"]["name"] == "vllm-worker"
    )
    head, worker = container("ray", "vllm"), container("ray", "vllm-worker")
    given = options(head["args"])
    gpus = [int(node["resources"]["limits"]["nvidia.com/gpu"]) for node in (head, worker)]
    assert gpus == [int(given["tensor-parallel-size"])] * 2
    assert 1 + workers == int(given["pipeline-parallel-size"])
    (wanted,) = (entry["value"] for entry in head["env"] if entry["name"] == "GPUS")
    assert int(wanted) == gpus[0] * (1 + workers)
    port = re.search(r"--head --port=(\d+)", " ".join(head["command"]))
    assert port and f"--address=vllm-0.vllm:{port[1]} " in " ".join(worker["command"])


def test_the_images_are_of_the_versions_that_the_project_is_made_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (wanted,) = project["optional-dependencies"]["vllm"]
    minor = re.match(r"vllm==(\d+\.\d+)\.\*", wanted)
    dockerfile = (ROOT / "Dockerfile").read_text()
    base = re.search(r"^FROM (vllm/vllm-openai:(v\S+)) AS gpu", dockerfile, flags=re.MULTILINE)
    assert minor and base and base[2].startswith(f"v{minor[1]}.")
    services = compose()["services"]
    assert services["vllm"]["image"] == base[1]
    assert services["gateway"]["image"] == f"thinkserve:{project['version']}"
    images = {
        folder: {name: pod["spec"]["containers"][0]["image"] for name, pod in pods(folder).items()}
        for folder in FOLDERS
    }
    assert images["base"]["vllm"] == base[1]
    assert images["ray"]["vllm"] == images["ray"]["vllm-worker"]
    assert images["ray"]["vllm"].rpartition(":")[2] == base[2]
    assert (KUBERNETES / "ray" / "Dockerfile").read_text().count(f"FROM {base[1]}\n") == 1
    kustomization = yaml.safe_load((KUBERNETES / "base" / "kustomization.yaml").read_text())
    assert [image["newTag"] for image in kustomization["images"]] == [project["version"]]


def test_the_gateway_image_is_a_target_of_the_dockerfile() -> None:
    """With the user that the manifests run it as."""
    build = compose()["services"]["gateway"]["build"]
    dockerfile = (DEPLOY / build["context"] / "Dockerfile").read_text()
    stage = re.search(
        rf"^FROM \S+ AS {build['target']}$(.*?)(?=^FROM |\Z)", dockerfile, re.MULTILINE | re.DOTALL
    )
    assert stage, f"no target {build['target']}"
    (user,) = {pods(folder)["thinkserve"]["spec"]["securityContext"]["runAsUser"] for folder in FOLDERS}
    assert f"--uid {user}" in stage[1]
    assert compose()["services"]["gateway"]["user"] == f"{user}:{user}"


@pytest.mark.vllm
def test_vllm_knows_every_argument() -> None:
    """By its own parser, in a process of its own; nothing is loaded."""
    code = (
        "import sys; from vllm.entrypoints.launchers.cli_args import make_arg_parser;"
        "from vllm.utils.argparse_utils import FlexibleArgumentParser as Parser;"
        "make_arg_parser(Parser()).parse_args(sys.argv[1:])"
    )
    for _, args in vllm_args():
        subprocess.run([sys.executable, "-P", "-c", code, *args], check=True, capture_output=True)


# Who reaches whom


def selected(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Whether a selector selects a pod with these labels."""
    return wanted.items() <= labels.items()


def allowed(folder: str, source: Mapping[str, str], target: Mapping[str, str], port: int) -> bool:
    """Whether the policies let one pod of the namespace reach a port of another, as Kubernetes defines it.

    Both ends must agree; a pod that no policy of a direction selects may do everything in that direction.
    """

    def lets(direction: str, here: Mapping[str, str], peer: Mapping[str, str]) -> bool:
        policies = [
            policy["spec"]
            for policy in of_kind(folder, "NetworkPolicy")
            if direction.capitalize() in policy["spec"]["policyTypes"]
            and selected(here, policy["spec"]["podSelector"].get("matchLabels", {}))
        ]
        rules = [rule for policy in policies for rule in policy.get(direction, [])]
        return not policies or any(
            (
                "ports" not in rule
                or any(entry["port"] == port and entry["protocol"] == "TCP" for entry in rule["ports"])
            )
            and any(
                selected(peer, entry["podSelector"].get("matchLabels", {}))
                for entry in rule.get("to" if direction == "egress" else "from", [{"podSelector": {}}])
            )
            for rule in rules
        )

    return lets("egress", source, target) and lets("ingress", target, source)


@pytest.mark.parametrize("folder", FOLDERS)
def test_only_the_gateway_reaches_vllm(folder: str) -> None:
    """On the one port; and vLLM reaches nobody but, over several nodes, itself."""
    labels = {name: pod["metadata"]["labels"] for name, pod in pods(folder).items()}
    gateway = labels.pop("thinkserve")
    for vllm in labels.values():
        assert allowed(folder, gateway, vllm, 8000)
        for port in POLICY_PORTS:
            assert not allowed(folder, STRANGER, vllm, port)
            assert not allowed(folder, {}, vllm, port)
            assert not allowed(folder, vllm, STRANGER, port)
            assert port == 8000 or not allowed(folder, gateway, vllm, port)
            for other in labels.values():
                assert allowed(folder, vllm, other, port) == (folder == "ray")
    assert allowed(folder, STRANGER, gateway, 8000)
    assert not allowed(folder, STRANGER, gateway, 9000)
    assert not allowed(folder, gateway, STRANGER, 8000)


@pytest.mark.parametrize("folder", FOLDERS)
def test_vllm_has_no_address_that_the_outside_reaches(folder: str) -> None:
    """Its Service is headless; nothing routes to it, and no pod is on its node's own network."""
    for service in of_kind(folder, "Service"):
        wanted = service["spec"]["selector"]
        chosen = {name for name, pod in pods(folder).items() if selected(pod["metadata"]["labels"], wanted)}
        assert chosen
        assert (
            service["spec"].get("type", "ClusterIP") == "ClusterIP" and "externalIPs" not in service["spec"]
        )
        if chosen != {"thinkserve"}:
            assert service["spec"]["clusterIP"] == "None"
    kinds = {document["kind"] for document in manifests(folder)}
    assert not kinds & {"Ingress", "HTTPRoute", "Gateway"}
    for pod in pods(folder).values():
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod["spec"])
        for found in pod["spec"]["containers"]:
            assert not any("hostPort" in port for port in found.get("ports", []))


def test_in_compose_only_the_gateway_reaches_vllm() -> None:
    """They share a network that has nobody else on it, and no way out; vLLM publishes no port."""
    services = compose()["services"]
    assert "ports" not in services["vllm"] and "network_mode" not in services["vllm"]
    (network,) = services["vllm"]["networks"]
    assert compose()["networks"][network] == {"internal": True}
    on_it = {name for name, service in services.items() if network in service["networks"]}
    assert on_it == {"vllm", "gateway"}
    for service in services.values():
        # What is published is so on the loopback address, unless the operator says otherwise.
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_pod_has_more_rights_than_it_needs(folder: str) -> None:
    """Nor the variables of Services: THINKSERVE_PORT and VLLM_PORT would be read as options."""
    assert set(pods(folder)) >= {"thinkserve", "vllm"}
    for pod in (pod["spec"] for pod in pods(folder).values()):
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for found in pod["containers"]:
            assert found["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert found["resources"]["limits"]["memory"] and found["resources"]["requests"]["cpu"]
            assert {"name": "tmp", "mountPath": "/tmp"} in found["volumeMounts"]


def test_a_service_of_this_name_would_break_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why service links are off."""
    monkeypatch.setenv("THINKSERVE_PORT", "tcp://10.96.0.12:80")
    with pytest.raises(typer.BadParameter):
        serve_parameters([], {}, monkeypatch)
