"""What prefect.yaml and the Kubernetes template declare is there and valid: no server is needed to see it."""

import importlib
import inspect
import json
import re
from pathlib import Path
from typing import Any

import prefect
import pytest
import yaml
from jsonschema import Draft202012Validator
from prefect.cli.deploy._models import PrefectYamlModel
from prefect.events.schemas.deployment_triggers import DeploymentEventTrigger
from prefect.server.schemas.core import WorkPool
from prefect.utilities.collections import get_from_dict

from flows.announce import EVENT
from tests.tracking.example import REPOSITORY

FILES = ("prefect.yaml", "deploy/kubernetes/prefect.yaml")
TEMPLATE = json.loads((REPOSITORY / "deploy/kubernetes/job-template.json").read_text())


def read(file: str) -> dict[str, Any]:
    found = yaml.safe_load((REPOSITORY / file).read_text())
    assert isinstance(found, dict)
    return found


DEPLOYMENTS = [(file, d) for file in FILES for d in read(file)["deployments"]]


@pytest.mark.parametrize(("file", "deployment"), DEPLOYMENTS, ids=lambda v: str(v)[:60])
def test_each_deployment_names_a_flow_and_its_parameters(file: str, deployment: dict[str, Any]) -> None:
    module, _, name = deployment["entrypoint"].rpartition(".")
    found = getattr(importlib.import_module(module), name)
    assert isinstance(found, prefect.Flow)
    assert deployment.get("parameters", {}).keys() <= inspect.signature(found.fn).parameters.keys()
    limit = deployment.get("concurrency_limit", {"limit": 1, "collision_strategy": "ENQUEUE"})
    assert (limit["limit"], limit["collision_strategy"] in ("ENQUEUE", "CANCEL_NEW")) == (1, True)


@pytest.mark.parametrize("file", FILES)
def test_prefect_reads_it_and_no_schedule_starts_by_itself(file: str) -> None:
    found = PrefectYamlModel.model_validate(read(file))
    schedules = [s for d in found.deployments for s in d.schedules or []]
    assert schedules
    assert not any(s.active for s in schedules)


def test_the_trigger_hears_what_is_announced_and_passes_what_the_flow_takes() -> None:
    (deployment,) = (d for _, d in DEPLOYMENTS if "triggers" in d)
    (spec,) = deployment["triggers"]
    trigger = DeploymentEventTrigger.model_validate(spec)
    assert trigger.expect == {EVENT}
    from flows.reload import reload

    for expression in spec["parameters"].values():  # `x or ''` would lose its quotes on the way
        assert re.fullmatch(r"\{\{ event\.payload\.\w+ \}\}", expression)
    assert spec["parameters"].keys() == inspect.signature(reload.fn).parameters.keys()


def test_the_kubernetes_template_is_one_that_a_work_pool_takes() -> None:
    """The server's own check, that every placeholder is declared; and beyond it, that every variable is used."""
    WorkPool.model_validate({"name": "x", "type": "kubernetes", "base_job_template": TEMPLATE})
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(TEMPLATE["job_configuration"])))
    assert used == TEMPLATE["variables"]["properties"].keys()
    Draft202012Validator.check_schema(TEMPLATE["variables"])


def prefects_own_template() -> dict[str, Any]:
    """What Prefect's server holds for workers of type kubernetes."""
    file = Path(prefect.__file__).parent / "server/api/collections_data/views/aggregate-worker-metadata.json"
    found = json.loads(file.read_text())["prefect-kubernetes"]["kubernetes"]["default_base_job_configuration"]
    assert isinstance(found, dict)
    return found


def test_it_lacks_nothing_that_a_kubernetes_worker_reads() -> None:
    own = prefects_own_template()["job_configuration"]
    ours = TEMPLATE["job_configuration"]
    assert ours.keys() == own.keys()
    for path in ("apiVersion", "kind", "metadata", "spec.backoffLimit", "spec.template.spec.restartPolicy"):
        keys = f"job_manifest.{path}"
        assert get_from_dict(ours, keys) == get_from_dict(own, keys), path
    (container,), (expected,) = (t["job_manifest"]["spec"]["template"]["spec"]["containers"] for t in (ours, own))
    for key in expected.keys() - {"resources"}:
        assert container[key] == expected[key]
    mounted = {m["name"] for m in container["volumeMounts"]}
    assert mounted == {v["name"] for v in ours["job_manifest"]["spec"]["template"]["spec"]["volumes"]}


@pytest.mark.parametrize("deployment", read(FILES[1])["deployments"], ids=lambda d: d["entrypoint"])
def test_its_deployments_set_variables_that_it_has(deployment: dict[str, Any]) -> None:
    given = deployment["work_pool"]["job_variables"]
    Draft202012Validator(TEMPLATE["variables"] | {"additionalProperties": False}).validate(given)
    assert read(FILES[1])["pull"][0]["prefect.deployments.steps.set_working_directory"]["directory"] == "/project"


def test_the_volume_is_the_one_that_the_template_mounts() -> None:
    volume = read("deploy/kubernetes/volume.yaml")
    assert volume["kind"] == "PersistentVolumeClaim"
    assert volume["metadata"]["name"] == TEMPLATE["variables"]["properties"]["claim"]["default"]
