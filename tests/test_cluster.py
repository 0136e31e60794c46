"""Stages on the workers of a real cluster that was started in another folder, and what is refused there."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask
import pytest
from ruamel.yaml import YAML
from torch import nn

from pipeline.cluster import Load, Needs, code_of_package, forget_other_stages, in_folder, objection
from pipeline.errors import BadInput
from pipeline.execution import NO_LIMITS, Execution, Limits, run, shards_of
from pipeline.own_kinds import load_own_kinds
from pipeline.segmenter.weights import per_thread
from pipeline.workspace import library_versions
from tests.fixtures.chain import ROOT, TINY, commands, hashes, invoke, with_changes, write_params
from tests.fixtures.cluster import PATIENCE, Cluster, kill_later, project, wait_until
from tests.fixtures.phantoms import write_folders

pytestmark = pytest.mark.first

STAGES = ("prepare", "base", "propose", "judge", "evaluate base", "validate base")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A scheduler and two workers. They end in any case."""
    found = Cluster(tmp_path_factory.mktemp("cluster"))
    watchdog = threading.Timer(3 * PATIENCE, found.close)
    watchdog.start()
    try:
        for name in ("one", "two"):
            found.worker(name)
        yield found
    finally:
        watchdog.cancel()
        found.close()


@pytest.fixture
def no_own_code() -> Iterator[None]:
    """Forget the own code of a project before and after a test."""
    load_own_kinds(Path("no project"))
    yield
    load_own_kinds(Path("no project"))


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_own_code: None) -> Any:
    """Class `Task` of a project's own code, from the project's folder."""
    monkeypatch.chdir(project(tmp_path / "project"))
    monkeypatch.syspath_prepend(str(Path.cwd()))
    from kinds._tasks import Task

    return Task


def on(cluster: Cluster | str, **knobs: Any) -> Execution:
    address = cluster if isinstance(cluster, str) else cluster.address
    return Execution.model_validate({"scheduler": "cluster", "address": address, "progress": "none", **knobs})


def members(task: Any, execution: Execution, limits: Limits = NO_LIMITS) -> list[str]:
    """Members that a stage of eight shards returns."""
    found = run(task, shards_of(list("abcdefgh"), 1), Path("work"), execution, "stage", limits)
    return found["member"].to_list()


# ---- a cluster of processes --------------------------------------------------------------------------------------


def test_stages_write_the_same_bytes_and_messages_on_workers_of_another_folder(
    cluster: Cluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    no_own_code: None,
) -> None:
    """Paths of the project are relative: the raw data, the stores and the models. One judge is of the project's own."""
    executions = {
        "local": TINY["execution"],
        "cluster": {"scheduler": "cluster", "address": cluster.address, "progress": "none"},
    }
    errors = {}
    for name, execution in executions.items():
        params = with_changes(
            data={"kind": "folders", "path": "raw", "classes": ["background", "disc"]},
            splits={"labelled": 5, "pool": 6, "validation": 4, "test": 4},
            judges={"agreement": {"kind": "agreement"}, "size": {"kind": "size"}},
            execution=execution,
        )
        monkeypatch.chdir(project(tmp_path / name))
        write_folders(Path("raw"), cases=19, shape=(24, 24))
        write_params(Path(), params)
        for line in commands(params):
            if " ".join(line.split()[2:4]).removeprefix("stages.").startswith(STAGES):
                invoke(line)
        Path("raw/images/case_03.png").write_bytes(b"no picture")
        capsys.readouterr()
        with pytest.raises(RuntimeError, match="exit code 2"):
            invoke("python -m stages.prepare --out data/again")
        errors[name] = capsys.readouterr().err
    local, found = (hashes(tmp_path / name, without="") for name in executions)
    assert {"data/proposals/proposals.parquet", "data/scores/size.parquet", "models/base/base.safetensors"} <= set(
        local
    )
    assert {"evaluation/base.parquet", "validation/base.parquet"} <= set(local)
    assert found == local
    assert "error: raw/images/case_03.png: case 'case_03'" in errors["local"]
    assert errors["cluster"] == errors["local"]


def test_a_worker_imports_the_projects_own_code(cluster: Cluster, own: Any) -> None:
    assert members(own(), on(cluster)) == list("abcdefgh")
    assert {path.read_text() for path in Path("work").glob("*.txt")} == {str(Path.cwd())}
    assert not list(Path("work/done").glob("*.token"))


def test_a_shard_of_a_dead_worker_is_done_again(cluster: Cluster, own: Any) -> None:
    assert members(own(fatal="c", deaths=1), on(cluster)) == list("abcdefgh")
    assert len(list(Path("work").glob("*.began"))) == 2


def test_a_shard_that_kills_its_workers_is_named_and_the_others_are_kept(cluster: Cluster, own: Any) -> None:
    """Dask gives up after two workers here. The nannies start new workers, so the cluster lives on.

    Dask cannot tell which shard of a worker has killed the worker, so a shard that waited there may be named too.
    """
    with pytest.raises(BadInput) as caught:
        members(own(fatal="c", deaths=9), on(cluster))
    *named, last = str(caught.value).splitlines()
    died = r"shard \d: 2 workers died while they had this shard, the last at tcp://127\.0\.0\.1:\d+, most likely .*"
    assert all(re.fullmatch(died, line) for line in named), named
    assert any(line.startswith("shard 2: ") for line in named)
    assert last == f"stage: {len(named)} of 8 shards failed; finished shards are kept"
    assert len(list(Path("work/done").glob("*.arrow"))) == 8 - len(named)


def test_memory_of_a_shard_bounds_the_shards_in_work_and_the_workers(
    cluster: Cluster, own: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """A budget of one shard is kept, and said where it keeps a thread idle. No worker has a tebibyte."""
    cluster.wait_for_workers(2)
    assert members(own(), on(cluster, memory_gb=0.15), Limits(2**27)) == list("abcdefgh")
    assert capsys.readouterr().err == (
        "stage: execution.memory_gb allows 1 shards of 0.1 GiB at a time, and the workers have 2 threads; raise "
        "execution.memory_gb if the machines have more\n"
    )
    shutil.rmtree("work/done")
    Path("work/done").mkdir()
    with pytest.raises(BadInput) as caught:
        members(own(), on(cluster), Limits(2**40))
    assert str(caught.value).startswith("workers tcp://127.0.0.1:")
    assert "expected a memory limit of 1024.0 GiB or more (1 shards at a time, 1024.0 GiB each), found " in str(
        caught.value
    )


def test_a_worker_with_other_code_is_refused_by_name(cluster: Cluster, own: Any, tmp_path: Path) -> None:
    other = shutil.copytree(Path("pipeline"), tmp_path / "other/pipeline")
    with (other / "errors.py").open("a") as file:
        file.write("ANOTHER_VERSION = True\n")
    # A preload imports the other version before the project's folder is known.
    cluster.worker("other", "--preload", "pipeline.errors", path=str(other.parent))
    wait_until(lambda: "Starting established connection" in (cluster.folder / "other.log").read_text())
    with pytest.raises(BadInput) as caught:
        members(own(), on(cluster))
    assert str(caught.value).startswith("worker tcp://127.0.0.1:")
    assert "expected the code of 'pipeline' that the stage runs, found other code" in str(caught.value)
    assert not list(Path("work").glob("*.txt"))


def test_a_lost_scheduler_ends_the_stage(own: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lost while the stage waits for a worker, as the stage has said at once and again after a quiet time."""
    said: list[str] = []
    monkeypatch.setattr("pipeline.cluster._say", said.append)
    monkeypatch.setattr("pipeline.cluster._QUIET", 0.1)
    alone = Cluster(tmp_path / "alone")
    try:
        kill_later(alone.scheduler, lambda: said == ["stage: the cluster has no worker; waiting for one"] * 2)
        with dask.config.set({"distributed.comm.timeouts.connect": "1s"}), pytest.raises(BadInput) as caught:
            members(own(), on(alone))
        assert str(caught.value).startswith("stage: expected the connection to the Dask scheduler to last, found that")
    finally:
        alone.close()


def test_no_scheduler_at_the_address(own: Any) -> None:
    with dask.config.set({"distributed.comm.timeouts.connect": "0.2s"}), pytest.raises(BadInput) as caught:
        members(own(), on("tcp://127.0.0.1:1"))
    assert str(caught.value).startswith(
        "execution.address: expected a Dask scheduler at 'tcp://127.0.0.1:1', found none"
    )


# ---- the page ----------------------------------------------------------------------------------------------------


def test_files_of_the_page_are_whole() -> None:
    """In Kubernetes, the pods that work on the project see one volume at one path, and all pods have one image."""
    page = (ROOT / "docs/clusters.md").read_text()
    files = dict(re.findall(r"<!-- file (\S+) -->\n```\w+\n(.*?)```", page, re.S))
    assert set(files) == {"slurm.py", "kubernetes.yaml", "gpus.py"}
    for name in ("slurm.py", "gpus.py"):
        compile(files[name], name, "exec")
        assert "DASK_SCHEDULER_ADDRESS" in files[name]
    claim, job = YAML(typ="safe").load_all(files["kubernetes.yaml"])
    runner, cluster = job["spec"]["job"]["spec"], job["spec"]["cluster"]["spec"]
    worker, scheduler = cluster["worker"]["spec"], cluster["scheduler"]["spec"]
    for pod in (runner, worker):
        assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert pod["containers"][0]["volumeMounts"] == [{"name": pod["volumes"][0]["name"], "mountPath": "/project"}]
    assert runner["containers"][0]["workingDir"] == "/project"
    assert len({pod["containers"][0]["image"] for pod in (runner, worker, scheduler)}) == 1
    assert cluster["scheduler"]["service"]["selector"]["dask.org/cluster-name"] == job["metadata"]["name"]


# ---- in one process ----------------------------------------------------------------------------------------------


def needs(**changes: Any) -> Needs:
    """Needs that this process has."""
    Path("a.token").touch()
    code = {"pipeline": code_of_package("pipeline")}
    return replace(Needs(str(Path.cwd()), "a.token", code, library_versions(), Load("stage", 0, 8, False)), **changes)


@pytest.mark.parametrize(
    ("changes", "limit", "expected"),
    [
        ({}, None, ""),
        ({"token": "b.token"}, None, "expected the project's folder "),
        ({"code": {"pipeline": "0"}}, None, "expected the code of 'pipeline' that the stage runs, found other code"),
        ({"code": {"no_such_package": "0"}}, None, "expected the code of 'no_such_package' that the stage runs"),
        ({"versions": {**library_versions(), "numpy": "1.0"}}, None, "expected numpy 1.0 as in the stage, found numpy"),
        ({"load": Load("stage", 0, 8, True)}, None, "expected one thread, because trainings never share a process"),
        # Two threads hold two shards of 3 GiB. A budget of one shard at a time leaves one of them idle.
        ({"load": Load("stage", 3 * 2**30, 8, False)}, 6 * 2**30, ""),
        ({"load": Load("stage", 3 * 2**30, 8, False)}, 5 * 2**30, "expected a memory limit of 6.0 GiB or more (2 "),
        ({"load": Load("stage", 3 * 2**30, 1, False)}, 5 * 2**30, ""),
        ({"load": Load("stage", 3 * 2**30, 8, False)}, None, ""),
    ],
)
def test_what_a_worker_of_two_threads_needs(
    changes: dict[str, Any], limit: int | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    worker = SimpleNamespace(state=SimpleNamespace(nthreads=2), memory_manager=SimpleNamespace(memory_limit=limit))
    found = objection(needs(**changes), worker)
    assert found.startswith(expected)
    assert bool(found) == bool(expected)


def test_a_task_of_another_folder_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads share the working directory. A second task of the same folder does not wait."""
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        (tmp_path / name).mkdir()
    reached, seen = threading.Event(), []

    def work() -> None:
        reached.set()
        with in_folder(str(tmp_path / "b")):
            seen.append(Path.cwd().name)

    with in_folder(str(tmp_path / "a")), in_folder(str(tmp_path / "a")):
        thread = threading.Thread(target=work)
        thread.start()
        reached.wait()
        thread.join(0.1)
        assert thread.is_alive()
        assert seen == []
        assert Path.cwd().name == "a"
    thread.join(PATIENCE)
    assert seen == ["b"]


def test_networks_of_an_earlier_stage_are_dropped(tmp_path: Path) -> None:
    """In a thread of its own, as in a worker."""
    weights = tmp_path / "weights"
    weights.touch()
    loads: list[int] = []

    def load() -> nn.Module:
        loads.append(len(loads))
        return nn.Identity()

    def stages() -> None:
        for token in ("one", "one", "two"):
            forget_other_stages(token)
            per_thread(weights, "cpu", load)

    thread = threading.Thread(target=stages)
    thread.start()
    thread.join()
    assert loads == [0, 1]
