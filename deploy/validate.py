#!/usr/bin/env python3
"""Checks the files below deploy/ without a cluster. Exit code 0 when all are right.

- Kubernetes manifests: strictly against the schemas of Kubernetes (an unknown field is an error),
  then what no schema sees: names that refer to each other, selectors, ports, the image's user.
- Collector configurations, in files and in ConfigMaps: every pipeline uses components that are
  defined, every component that is defined is used, and the ports match the manifests.
- Dockerfile: hadolint, from beside this interpreter. systemd unit: `systemd-analyze verify`,
  where the machine has it.
- This script itself: broken copies of the same files must be refused.

Needs the packages of requirements.txt.
"""

import copy
import logging
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import kubernetes_validate
import yaml

DEPLOY = pathlib.Path(__file__).resolve().parent
KUBERNETES_VERSION = "1.37"
# Kinds that the schemas of Kubernetes do not know: they are for kubectl, not for the cluster.
NOT_FOR_THE_CLUSTER = {"Kustomization"}


class UniqueKeys(yaml.SafeLoader):
    """Plain YAML takes the last of two equal keys in silence; here that is an error."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: given twice: {sorted(twice)}")
        return super().construct_mapping(node, deep)


def read(text):
    return [part for part in yaml.load_all(text, Loader=UniqueKeys) if part is not None]


def title(resource):
    return f"{resource['kind']} {resource['metadata']['name']}"


# Kubernetes

def schema_errors(resource):
    try:
        kubernetes_validate.validate(resource, KUBERNETES_VERSION, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{title(resource)}: {'.'.join(str(step) for step in error.path)}: {error.message}"]
    except kubernetes_validate.SchemaNotFoundError as error:
        return [f"{title(resource)}: {error}"]
    return []


def pod_of(resource):
    """The pod template of a workload, or None."""
    template = resource.get("spec", {}).get("template")
    return template if isinstance(template, dict) else None


def reference_errors(resources):
    """What one resource says of another must be so."""
    errors = []
    known = {(r["kind"], r["metadata"].get("namespace"), r["metadata"]["name"]) for r in resources}
    namespaces = {name for kind, _, name in known if kind == "Namespace"}
    for resource in resources:
        namespace = resource["metadata"].get("namespace")
        if namespace is not None and namespace not in namespaces:
            errors.append(f"{title(resource)}: no Namespace {namespace}")
        if resource["kind"] == "Service":
            errors += service_errors(resource, resources)
        if resource["kind"] == "ClusterRoleBinding":
            wanted = [(s["kind"], s["namespace"], s["name"]) for s in resource["subjects"]]
            wanted.append((resource["roleRef"]["kind"], None, resource["roleRef"]["name"]))
            errors += [f"{title(resource)}: no {w[0]} {w[2]}" for w in wanted if w not in known]
        pod = pod_of(resource)
        if pod is not None:
            errors += pod_errors(resource, pod, known)
    return errors


def pod_errors(workload, pod, known):
    errors = []
    name, namespace = title(workload), workload["metadata"].get("namespace")
    selector, labels = workload["spec"]["selector"]["matchLabels"], pod["metadata"]["labels"]
    if not selector.items() <= labels.items():
        errors.append(f"{name}: the selector does not match the pod's own labels")
    account = pod["spec"].get("serviceAccountName")
    if account and ("ServiceAccount", namespace, account) not in known:
        errors.append(f"{name}: no ServiceAccount {account}")
    volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", [])}
    for volume in volumes.values():
        config = volume.get("configMap", {}).get("name")
        if config and ("ConfigMap", namespace, config) not in known:
            errors.append(f"{name}: no ConfigMap {config}")
    used = set()
    for container in pod["spec"]["containers"]:
        mounts = {mount["name"] for mount in container.get("volumeMounts", [])}
        errors += [f"{name}: no volume {mount}" for mount in sorted(mounts - volumes.keys())]
        used |= mounts
        ports = {port["name"] for port in container.get("ports", [])}
        for probe in ("readinessProbe", "livenessProbe"):
            port = container.get(probe, {}).get("httpGet", {}).get("port")
            if port is not None and port not in ports:
                errors.append(f"{name}: {probe} asks port {port}, which the container lacks")
        variables = set()
        for variable in container.get("env", []):
            for reference in re.findall(r"\$\(([A-Z_]+)\)", variable.get("value", "")):
                # Kubernetes substitutes only what was defined before.
                if reference not in variables:
                    errors.append(f"{name}: {variable['name']} uses {reference} before it is set")
            variables.add(variable["name"])
    errors += [f"{name}: nobody mounts volume {v}" for v in sorted(volumes.keys() - used)]
    return errors


def service_errors(service, resources):
    """A service must select pods that have the port it names."""
    selector = service["spec"]["selector"]
    pods = [pod for pod in map(pod_of, resources) if pod is not None]
    selected = [pod for pod in pods if selector.items() <= pod["metadata"]["labels"].items()]
    if not selected:
        return [f"{title(service)}: selects no pod"]
    ports = {
        port["name"]
        for pod in selected
        for container in pod["spec"]["containers"]
        for port in container.get("ports", [])
    }
    wanted = [port["targetPort"] for port in service["spec"]["ports"]]
    return [f"{title(service)}: the pods have no port {p}" for p in wanted if p not in ports]


# Between the agent and the collectors

def route_errors(resources):
    """Spans must find their way: agent -> node's port -> gateway's service."""
    errors = []
    by_title = {title(resource): resource for resource in resources}
    agent = pod_of(by_title["DaemonSet ebpf-agent"])["spec"]["containers"][0]
    collector = pod_of(by_title["DaemonSet collector-node"])["spec"]["containers"][0]
    endpoint = next(
        e["value"] for e in agent["env"] if e["name"] == "OTEL_EXPORTER_OTLP_ENDPOINT"
    )
    host_ports = {str(port["hostPort"]) for port in collector["ports"] if "hostPort" in port}
    if endpoint.rsplit(":", 1)[1] not in host_ports:
        errors.append(f"the agent sends to {endpoint}, collector-node has {sorted(host_ports)}")
    for layer in ("collector-node", "collector-gateway"):
        kind = "DaemonSet" if layer == "collector-node" else "Deployment"
        container = pod_of(by_title[f"{kind} {layer}"])["spec"]["containers"][0]
        offered = {str(port["containerPort"]) for port in container["ports"]}
        config = read(by_title[f"ConfigMap {layer}"]["data"]["collector.yaml"])[0]
        for port in sorted(listening_ports(config) - offered):
            errors.append(f"{layer}: listens on {port}, which is no port of its container")
        needed = set(re.findall(r"\$\{env:(\w+)\}", yaml.dump(config)))
        needed |= set(re.findall(r"node_from_env_var: (\w+)", yaml.dump(config)))
        given = {variable["name"] for variable in container.get("env", [])}
        errors += [f"{layer}: {name} is not in its environment" for name in sorted(needed - given)]
    node = read(by_title["ConfigMap collector-node"]["data"]["collector.yaml"])[0]
    host = node["exporters"]["loadbalancing"]["resolver"]["dns"]["hostname"]
    service, namespace = host.split(".")[:2]
    found = by_title.get(f"Service {service}")
    if found is None or found["metadata"]["namespace"] != namespace:
        errors.append(f"collector-node sends to {host}, and there is no such Service")
    elif found["spec"].get("clusterIP") != "None":
        errors.append(f"Service {service}: must be headless, or its name hides the gateways")
    return errors


def listening_ports(config):
    endpoints = [
        protocol["endpoint"]
        for receiver in config["receivers"].values()
        for protocol in receiver.get("protocols", {}).values()
    ]
    endpoints += [e["endpoint"] for e in config.get("extensions", {}).values() if "endpoint" in e]
    return {endpoint.rsplit(":", 1)[1] for endpoint in endpoints}


# Collector

def collector_errors(name, config):
    """Pipelines use what is defined, and nothing is defined for nothing."""
    sections = ("receivers", "processors", "exporters", "extensions", "connectors")
    known = {"service", *sections}
    errors = [f"{name}: unknown section {section}" for section in sorted(config.keys() - known)]
    defined = {section: set(config.get(section) or {}) for section in sections}
    service = config["service"]
    used = {section: set() for section in sections}
    used["extensions"] = set(service.get("extensions", []))
    for pipeline, parts in service["pipelines"].items():
        if pipeline.split("/")[0] not in {"traces", "metrics", "logs", "profiles"}:
            errors.append(f"{name}: pipeline {pipeline} is of no known signal")
        for section in ("receivers", "processors", "exporters"):
            for component in parts.get(section, []):
                kind = section
                if section != "processors" and component in defined["connectors"]:
                    kind = "connectors"
                used[kind].add(component)
        if not parts.get("receivers") or not parts.get("exporters"):
            errors.append(f"{name}: pipeline {pipeline} lacks a receiver or an exporter")
        order = parts.get("processors", [])
        if not order or order[0] != "memory_limiter":
            errors.append(f"{name}: pipeline {pipeline} must begin with memory_limiter")
    for section in sections:
        for component in sorted(used[section] - defined[section]):
            errors.append(f"{name}: {component} is used, and not defined in {section}")
        for component in sorted(defined[section] - used[section]):
            errors.append(f"{name}: {component} in {section} is not used")
    return errors


def collector_configs(resources):
    """(name, configuration) of every collector: ConfigMaps, then files."""
    for resource in resources:
        data = resource["data"] if resource["kind"] == "ConfigMap" else {}
        for key, text in data.items():
            yield f"{title(resource)}, {key}", read(text)[0]
    for path in sorted((DEPLOY / "collector").glob("*.yaml")):
        yield str(path.relative_to(DEPLOY)), read(path.read_text())[0]


# Other files

def tool_errors(command, name):
    """What a checking program says when it does not agree."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode == 0:
        return []
    return [f"{name}: {line}" for line in (result.stdout + result.stderr).splitlines() if line]


def dockerfile_errors(dockerfile):
    hadolint = pathlib.Path(sys.executable).parent / "hadolint"
    if not hadolint.exists():
        return ["hadolint is missing: install requirements.txt into this interpreter's venv"]
    return tool_errors([hadolint, dockerfile], dockerfile.name)


def unit_errors(text):
    """`verify` wants the program to exist, so it reads a copy that runs another one."""
    with tempfile.TemporaryDirectory() as directory:
        unit = pathlib.Path(directory) / "ebpf-agent.service"
        unit.write_text(text.replace("ExecStart=/usr/bin/agent", "ExecStart=/bin/true"))
        command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", unit]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        # An unknown setting is only a warning to systemd: the exit code stays 0.
        said = (result.stdout + result.stderr).replace(f"{directory}/", "")
        return [line for line in said.splitlines() if "ebpf-agent.service" in line]


# This script

def self_check(resources):
    """Every kind of mistake this script promises to find, made on copies of the real files."""

    def broken(change):
        copies = copy.deepcopy(resources)
        change({title(resource): resource for resource in copies})
        errors = [error for resource in copies for error in schema_errors(resource)]
        if not errors:
            errors = reference_errors(copies) + route_errors(copies)
        for name, config in collector_configs(copies):
            errors += collector_errors(name, config)
        return errors

    def agent(by_title):
        return by_title["DaemonSet ebpf-agent"]["spec"]["template"]["spec"]

    def edit_config(old, new):
        def change(by_title):
            data = by_title["ConfigMap collector-gateway"]["data"]
            assert old in data["collector.yaml"], old
            data["collector.yaml"] = data["collector.yaml"].replace(old, new)
        return change

    def container(by_title, workload):
        return by_title[workload]["spec"]["template"]["spec"]["containers"][0]

    # What the error must say, and the mistake.
    mistakes = {
        "'yes' is not of type": lambda r: agent(r).update(hostPID="yes"),
        "'hostPid' was unexpected": lambda r: agent(r).update(hostPid=True),
        "'selector' is a required": lambda r: r["DaemonSet ebpf-agent"]["spec"].pop("selector"),
        "does not match the pod's own labels": lambda r: r["DaemonSet ebpf-agent"]["spec"][
            "selector"].update(matchLabels={"app.kubernetes.io/name": "other"}),
        "no volume cgroup": lambda r: agent(r)["volumes"].pop(),
        "before it is set": lambda r: container(r, "DaemonSet ebpf-agent")["env"].reverse(),
        "collector-node has ['4999']": lambda r: container(r, "DaemonSet collector-node")[
            "ports"][0].update(hostPort=4999),
        "there is no such Service": lambda r: r["Service collector-gateway-headless"][
            "metadata"].update(name="other"),
        "x is used, and not defined": edit_config("[memory_limiter, ", "[memory_limiter, x, "),
        "tail_sampling in processors is not used": edit_config("tail_sampling, batch]", "batch]"),
    }
    return [
        f"self-check: not noticed: {message}"
        for message, mistake in mistakes.items()
        if not any(message in error for error in broken(mistake))
    ]


def main():
    # The validator logs what it then raises.
    logging.disable(logging.CRITICAL)
    manifests = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
    documents = {path.name: read(path.read_text()) for path in manifests}
    resources = [
        resource
        for parts in documents.values()
        for resource in parts
        if resource["kind"] not in NOT_FOR_THE_CLUSTER
    ]
    errors = [error for resource in resources for error in schema_errors(resource)]
    errors += reference_errors(resources) + route_errors(resources)
    listed = set(documents["kustomization.yaml"][0]["resources"])
    for name in sorted((documents.keys() - {"kustomization.yaml"}) ^ listed):
        errors.append(f"kustomization.yaml and the directory do not agree about {name}")
    configs = list(collector_configs(resources))
    for name, config in configs:
        errors += collector_errors(name, config)
    errors += dockerfile_errors(DEPLOY / "docker" / "Dockerfile")
    checked = [f"{len(resources)} Kubernetes resources", f"{len(configs)} collector configurations"]
    checked.append("Dockerfile")
    if shutil.which("systemd-analyze"):
        unit = (DEPLOY / "systemd" / "ebpf-agent.service").read_text()
        errors += unit_errors(unit)
        if not unit_errors(unit.replace("NoNewPrivileges=", "NoNewPrivilege=")):
            errors.append("self-check: not noticed: an unknown setting in the unit")
        checked.append("systemd unit")
    else:
        print("skipped: the systemd unit, because systemd-analyze is not installed")
    # On files that are wrong already, it would only repeat that.
    errors = errors or self_check(resources)
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    if errors:
        return 1
    print(f"right: {', '.join(checked)}; broken copies were refused")
    return 0


if __name__ == "__main__":
    sys.exit(main())
