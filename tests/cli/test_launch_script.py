"""Job files: what a cluster reads in them, and what is refused because it would not run there."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from oumi_kernel.cli.application import dispatch
from oumi_kernel.errors import ConfigError
from tests.conftest import minimal_yaml

KUBERNETES = ("--image", "repo/oumi:1", "--volume", "claim:/output")


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Return `written(cluster, *options)`: the job file of a configuration in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "tune.yaml").write_text(minimal_yaml().replace("./model", "org/model"))

    def write(cluster: str, *options: str, config: str = "tune.yaml") -> str:
        dispatch(["launch", "script", cluster, config, *options])
        return capsys.readouterr().out

    return write


def test_slurm_starts_one_task_on_each_machine_which_starts_the_processes(written, tmp_path: Path) -> None:
    text = written("slurm", "--nodes", "2", "--gpus", "8", "--time", "1-00:00:00", "--training.run_name=a b")
    options = dict(line[10:].partition("=")[::2] for line in text.splitlines() if line.startswith("#SBATCH --"))
    assert (options["nodes"], options["ntasks-per-node"], options["gpus-per-node"]) == ("2", "1", "8")
    assert (options["cpus-per-task"], options["time"], options["chdir"]) == ("32", "1-00:00:00", str(tmp_path))
    file = tmp_path / "job.sh"
    file.write_text(text)
    subprocess.run(["bash", "-n", file], check=True)
    # what the tasks are told, by a Slurm of three lines
    for name, lines in {
        "scontrol": 'printf "gpu07\\ngpu08\\n"',
        "srun": 'while [[ $1 == --* ]]; do shift; done; SLURM_NODEID=1 exec "$@"',
        "python": 'printf "%s\\n" "$@"',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{lines}\n")
        (tmp_path / name).chmod(0o755)
    file.write_text(text.replace(sys.executable, "python"))
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "12", "SLURM_JOB_NODELIST": "gpu[07-08]"}
    for restarts in ({}, {"SLURM_RESTART_COUNT": "1"}):
        done = subprocess.run(["bash", file], env=environment | restarts, capture_output=True, text=True, check=True)
        words = done.stdout.splitlines()
        assert words[:5] == ["-m", "oumi_kernel", "run", "tune.yaml", "--training.run_name=a b"]
        joined = " ".join(words)
        assert joined.endswith("--nnodes 2 --rdzv gpu07:20012 --node-rank 1")
        assert ("--training.try_resume_from_last_checkpoint" in joined) == bool(restarts)


def test_slurm_with_a_container_on_one_machine_needs_no_meeting_point(written) -> None:
    text = written("slurm", "--gpus", "0", "--cpus", "2", "--image", "repo/oumi:1", "--partition", "long")
    assert "gpus-per-node" not in text
    assert "#SBATCH --partition=long" in text
    assert "--container-image=repo/oumi:1" in text
    assert "--rdzv" not in text
    assert "oumi run tune.yaml --nproc 1" in text


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_shellcheck_finds_nothing(written) -> None:
    for nodes in ("1", "3"):
        subprocess.run(["shellcheck", "-"], input=written("slurm", "--nodes", nodes), text=True, check=True)


def test_skypilot_takes_the_folder_along_and_tells_each_machine_its_number(written) -> None:
    options = ("--nodes", "2", "--gpus", "8", "--gpu-type", "H100", "--volume", "store:/out", "--time", "01:00:00")
    task = yaml.safe_load(written("skypilot", *options))
    assert task["resources"] == {"cpus": "32+", "accelerators": "H100:8"}
    assert (task["name"], task["num_nodes"], task["workdir"], task["volumes"]) == ("tune", 2, ".", {"/out": "store"})
    assert "timeout --preserve-status 3600 oumi run tune.yaml " in task["run"]
    assert '--node-rank "$SKYPILOT_NODE_RANK" --rdzv "$host:29400"' in task["run"]
    assert "--training.output_dir=/out/tune" in task["run"]
    assert "pip install" in task["setup"]
    assert "setup" not in yaml.safe_load(written("skypilot", "--gpus", "0", "--image", "repo/oumi:1"))


def pods(job: dict[str, Any]) -> dict[str, Any]:
    return job["spec"]["pytorchReplicaSpecs"]


def test_kubernetes_has_the_configuration_in_the_job_file_and_a_pod_for_each_machine(written, tmp_path: Path) -> None:
    config, job = yaml.safe_load_all(written("kubernetes", *KUBERNETES, "--nodes", "3", "--gpus", "8"))
    assert config["data"] == {"tune.yaml": (tmp_path / "tune.yaml").read_text()}
    assert (job["apiVersion"], job["kind"], job["spec"]["nprocPerNode"]) == ("kubeflow.org/v1", "PyTorchJob", "8")
    assert {name: replicas["replicas"] for name, replicas in pods(job).items()} == {"Master": 1, "Worker": 2}
    (container,) = pods(job)["Master"]["template"]["spec"]["containers"]
    assert container["name"] == "pytorch"
    assert container["command"][:3] == ["oumi", "run", "/etc/oumi/tune.yaml"]
    assert "--training.output_dir=/output/tune" in container["command"]
    assert container["resources"]["limits"] == {"cpu": 32, "nvidia.com/gpu": 8}
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pods(job)["Worker"]["template"]["spec"]["volumes"]}
    assert mounted.keys() == volumes.keys()
    assert volumes["output"]["persistentVolumeClaim"]["claimName"] == "claim"
    assert volumes["config"]["configMap"]["name"] == config["metadata"]["name"]
    assert "Worker" not in pods(list(yaml.safe_load_all(written("kubernetes", *KUBERNETES)))[1])


@pytest.mark.parametrize(
    ("cluster", "options", "message"),
    [
        ("slurm", ("--nodes", "0"), "--nodes and --cpus must be 1 or more"),
        ("slurm", ("--time", "soon"), "--time must be HH:MM:SS"),
        ("slurm", ("--name", "My_Job"), "--name must be of small letters"),
        ("slurm", ("--volume", "a:/b"), "--volume: there is no such thing on Slurm"),
        ("skypilot", (), "--gpu-type is missing"),
        ("skypilot", ("--gpus", "0", "--nodes", "2"), "several machines need a folder that all share"),
        ("skypilot", ("--partition", "long"), "--partition: there is no such thing on SkyPilot"),
        ("kubernetes", (), "Kubernetes needs --image"),
        ("kubernetes", ("--image", "i", "--volume", "claim"), "--volume must be NAME:/PATH"),
        ("slurm", ("--training.seed=x",), "training.seed"),
    ],
)
def test_what_would_not_run_there_is_refused(cluster: str, options: tuple[str, ...], message: str, written) -> None:
    with pytest.raises(ConfigError, match=message):
        written(cluster, *options)


def test_files_that_do_not_travel_are_refused(written, tmp_path: Path) -> None:
    (tmp_path / "local.yaml").write_text(minimal_yaml())
    with pytest.raises(ConfigError, match=r"do not travel to a pod: \./model\."):
        written("kubernetes", *KUBERNETES, config="local.yaml")
    inner = tmp_path / "inner"
    inner.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(inner)
        with pytest.raises(ConfigError, match="is not within"):
            written("skypilot", "--gpus", "0", config="../tune.yaml")


def test_the_job_file_is_written_where_asked(written, tmp_path: Path) -> None:
    assert written("slurm", "--output", "job.sh") == ""
    assert (tmp_path / "job.sh").read_text().startswith("#!/bin/bash\n#SBATCH")
