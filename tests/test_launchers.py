"""Which process this is, by what launchers leave in the environment, and what `oumi run` makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from oumi_kernel.cli.launching import Launch
from oumi_kernel.contracts import World
from oumi_kernel.errors import ConfigError
from oumi_kernel.launch import LAUNCH, Processes, is_worker, world_from
from oumi_kernel.launchers import LAUNCHERS, PORTS, first_of_slurm, meeting_point

TORCHRUN = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
# as srun and sbatch of Slurm set them, and mpirun of Open MPI
BATCH = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "4"}
STEP = BATCH | {
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
}
MPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
    "PMIX_NAMESPACE": "1234",
}
PALS = {"PALS_RANKID": "3", "PMI_SIZE": "4", "PALS_LOCAL_RANKID": "1", "PALS_APID": "x"}
HYDRA = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "PBS_JOBID": "9.server"}
POD = {
    "RANK": "1",
    "WORLD_SIZE": "8",
    "PET_NPROC_PER_NODE": "4",
    "PET_NNODES": "2",
    "PET_NODE_RANK": "1",
    "PET_MASTER_ADDR": "job-master-0",
    "PET_MASTER_PORT": "23456",
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch):
    """Return a function that puts variables into an environment without any launcher's."""
    for launcher in LAUNCHERS:
        for name in (launcher.rank, launcher.size, launcher.local_rank):
            monkeypatch.delenv(name, raising=False)

    def put(variables: dict[str, str]) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return put


@pytest.mark.parametrize(
    "variables", [TORCHRUN, STEP, MPI, PALS, HYDRA], ids=["torchrun", "slurm", "mpi", "pals", "hydra"]
)
def test_a_process_that_a_launcher_started_knows_its_place(variables: dict[str, str], environment) -> None:
    environment(variables)
    assert world_from() == World(rank=3, local_rank=1, size=4)
    assert Launch().start() == (Processes(per_node=1), World(rank=3, local_rank=1, size=4))


@pytest.mark.parametrize(
    "variables",
    [
        {},
        BATCH,
        STEP | {"SLURM_STEP_NUM_TASKS": "1"},
        STEP | {"SLURM_PTY_PORT": "1"},
        MPI | {"OMPI_COMM_WORLD_SIZE": "1"},
        POD,
    ],
    ids=["nothing", "batch script", "one task", "shell", "one process", "pod"],
)
def test_a_process_that_was_started_alone_is_none_of_several(variables: dict[str, str]) -> None:
    assert not is_worker(variables)
    assert world_from(variables) == World()


def test_an_mpi_that_slurm_started_decides(environment) -> None:
    environment(STEP | {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"} | MPI)
    assert world_from() == World(rank=3, local_rank=1, size=4)


def test_the_processes_of_a_job_meet_at_its_first_machine_and_at_a_port_of_their_own(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("x1.cluster\nx1.cluster\nx2.cluster\n")
    assert meeting_point(TORCHRUN) == ("a", 1)
    host, port = meeting_point(STEP)
    assert (host, port in PORTS) == ("gpu07", True)
    assert meeting_point(STEP | {"SLURM_PROCID": "0"}) == (host, port)
    assert meeting_point(STEP | {"SLURM_STEP_ID": "1"})[1] != port
    assert meeting_point(STEP | {"MASTER_PORT": "5"}) == ("gpu07", 5)
    assert meeting_point(HYDRA | {"PBS_NODEFILE": str(hosts)})[0] == "x1.cluster"
    assert meeting_point(MPI)[0] == "localhost"
    with pytest.raises(ConfigError, match="Open MPI started several processes, and MASTER_ADDR is not set"):
        meeting_point(MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2"})
    with pytest.raises(ConfigError, match="torchrun started several processes, and MASTER_PORT is not set"):
        meeting_point(TORCHRUN | {"MASTER_PORT": ""})


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("node1", "node1"),
        ("a,b", "a"),
        ("node[03-05,9],x", "node03"),
        ("node[9,10-12]", "node9"),
        ("rack[1-2]n[0-3]-ib,c", "rack1n0-ib"),
        ("n-2[01-02]", "n-201"),
    ],
)
def test_the_first_host_of_slurms_notation_is_found(hosts: str, first: str) -> None:
    assert first_of_slurm(hosts) == first


def test_options_that_a_launcher_makes_void_are_refused(environment) -> None:
    environment(TORCHRUN)
    for launch in (Launch(nproc=2), Launch(max_restarts=1), Launch(nnodes=2, rdzv="h:1")):
        with pytest.raises(ConfigError, match="torchrun started this process, one of several"):
            launch.start()


def test_one_task_on_each_machine_may_start_the_processes(environment) -> None:
    environment(STEP)
    with pytest.raises(ConfigError, match="give --nnodes, --node-rank and --rdzv"):
        Launch(nproc=2).start()
    processes, world = Launch(nproc=2, nnodes=2, node_rank=1, rdzv="gpu07:29400").start()
    assert processes == Processes(per_node=2, nodes=2, node_rank=1, rendezvous="gpu07:29400")
    assert world == World(size=4, nodes=2)


def test_a_process_that_oumi_run_started_ignores_its_own_options(environment) -> None:
    environment(TORCHRUN | {LAUNCH: "/folder"})
    assert Launch(nproc=4, max_restarts=2).start()[1] == World(rank=3, local_rank=1, size=4)


def test_a_pod_of_a_pytorchjob_starts_its_processes(environment) -> None:
    environment(POD)
    assert Launch().start() == (
        Processes(per_node=4, nodes=2, node_rank=1, rendezvous="job-master-0:23456"),
        World(size=8, nodes=2),
    )
    assert Launch(nproc=2, max_restarts=1).start()[0].per_node == 2
    environment({"PET_NNODES": "1:2"})
    with pytest.raises(ConfigError, match="PET_NNODES"):
        Launch().start()


@pytest.mark.parametrize(
    ("launch", "message"),
    [
        (Launch(nproc=0), "--nproc must be 1 or more"),
        (Launch(nnodes=2), "go together"),
        (Launch(rdzv="a:1"), "go together"),
        (Launch(nnodes=2, node_rank=2, rdzv="a:1"), "--node-rank from 0"),
        (Launch(nnodes=2, rdzv="a"), "--rdzv must be HOST:PORT"),
    ],
)
def test_processes_that_cannot_be_are_refused(launch: Launch, message: str, environment) -> None:
    with pytest.raises(ConfigError, match=message):
        launch.start()
