"""The profile `slurm` on a real Slurm: what its jobs ask for, and every way in which a run may be disturbed.

All workflows run at the same time and are disturbed in one go; then the tests look at what became of each run.
"""

import re
import signal
import time
from types import SimpleNamespace

import pytest
from mlflow import MlflowClient
from projects import (
    ROOT,
    checkpoints,
    gcflow,
    metrics,
    prepare_data,
    snapshots,
    temporary_files,
    tiny_params,
    wait_until,
    weights,
    write_project,
)
from slurm_cluster import missing
from slurm_workflows import RUN, Workflow, tiny_unets

from gcflow.pipeline.params import Params
from gcflow.pipeline.stages import Stages

ABSENT = missing()
pytestmark = [pytest.mark.slurm, pytest.mark.skipif(ABSENT is not None, reason=f"no Slurm to test on: {ABSENT}")]

CANCELLED, KILLED, REQUEUED, HUNG = DISTURBED = range(4)
README_COMMAND = "snakemake --profile slurm all"
SECONDS_LEFT = 20
OUTLIVED, LOST = range(2)
WITHIN, ACROSS = range(2)
WEIGHTS = [f"results/{RUN}/seed{seed}/weights.safetensors" for seed in DISTURBED]


def hasten(cluster, job):
    """Slurm leaves a requeued job alone for two minutes."""
    cluster.call("scontrol", "update", f"JobId={job}", "StartTime=now")


def disturb(workflow, trainers):
    """Four runs, each in its own way; returns the numbers of their jobs."""
    cluster = workflow.cluster
    jobs = [workflow.job(seed) for seed in DISTURBED]
    # It does not hear Slurm's SIGTERM.
    trainers[HUNG].hang()
    cluster.call("scontrol", "update", f"JobId={jobs[HUNG]}", "TimeLimit=1")
    cluster.call("scancel", jobs[CANCELLED])
    cluster.call("scontrol", "requeue", jobs[REQUEUED])
    trainers[KILLED].send(signal.SIGKILL)
    wait_until(lambda: cluster.describe(jobs[REQUEUED])["JobState"] == "PENDING", pause=0.2)
    hasten(cluster, jobs[REQUEUED])
    return jobs


def outlive(workflow, first):
    """Snakemake is killed while its job runs, and started again; returns what was seen then."""
    job = workflow.job(OUTLIVED)
    workflow.kill()
    workflow.call("snakemake", "--profile", "slurm", "--unlock")
    workflow.start(*WEIGHTS[:2])
    # Or it would be at its end before its node is lost.
    other = workflow.trainer(LOST)
    wait_until(lambda: "waits for process" in workflow.attempts("train/digits_ic_0")[-1])
    lone, saved = first.alive, checkpoints(workflow.folder, f"{RUN}/{OUTLIVED}")
    first.go_on()
    return SimpleNamespace(job=job, pid=first.pid, lone=lone, saved=saved, other=other)


def lose_node(workflow, trainer):
    """A node is drained, which leaves its job alone, and then lost; it comes back later."""
    cluster, job = workflow.cluster, workflow.job(LOST)
    others = [other["id"] for other in workflow.jobs(f"train digits_ic_{OUTLIVED}")]
    wait_until(lambda: {cluster.describe(other)["JobState"] for other in others} == {"COMPLETED"}, pause=0.5)
    cluster.call("scontrol", "update", "NodeName=spare", "State=DRAIN", "Reason=test")
    drained = cluster.describe(job)["JobState"], trainer.alive
    cluster.call("scontrol", "update", "NodeName=spare", "State=DOWN", "Reason=test")
    wait_until(lambda: cluster.describe(job)["JobState"] == "PENDING", pause=0.2)
    # A node that comes back while the lost job still runs on it is drained by Slurm.
    wait_until(lambda: not trainer.alive and not cluster.has_steps(job), pause=0.2)
    cluster.call("scontrol", "update", "NodeName=spare", "State=RESUME")
    hasten(cluster, job)
    return SimpleNamespace(job=job, drained=drained)


def pass_limit(workflow, trainer):
    """Twice the time to save comes while the run is held; returns the number of its job."""
    job = workflow.job(0)

    def requeued(restarts):
        time.sleep(SECONDS_LEFT)
        trainer.go_on()
        seen = {"Restarts": restarts, "JobState": "PENDING"}
        wait_until(lambda: seen.items() <= workflow.cluster.describe(job).items(), pause=0.2)
        hasten(workflow.cluster, job)

    requeued("1")
    (log,) = workflow.attempts("train/digits_ic_0")
    trainer = workflow.trainer(0, int(re.findall(r"saved at step (\d+)", log)[0]))
    requeued("2")
    return job


def come_back(workflow, processes):
    """A run is preempted, and started again with so many processes; returns the number of its first job."""
    trainer, job = workflow.trainer(0), workflow.job(0)
    workflow.kill()
    workflow.cluster.call("scancel", job)
    trainer.go_on()
    wait_until(lambda: workflow.cluster.describe(job)["JobState"] in ("CANCELLED", "FAILED", "COMPLETED"), pause=0.2)
    workflow.call("snakemake", "--profile", "slurm", "--unlock")
    workflow.environment["GCFLOW_PROCESSES"] = str(processes)
    workflow.start(WEIGHTS[0])
    return job


def train_by_hand(folder, seeds, *options):
    """Runs of `tiny_unets` with nothing in their way."""
    prepare_data(write_project(folder, tiny_unets(len(DISTURBED))), "digits")
    for seed in seeds:
        gcflow(folder, "train", f"{RUN}/{seed}", *options)
    return folder


@pytest.fixture(scope="module")
def story(cluster, tmp_path_factory):
    """The workflows, all finished.

    everything: `all` of points in the plane. disturbed, spare: what the names of their runs say. limited: a run that
    takes longer than its time limit. pair: two processes per run, one run as a job of the workflow, one over two nodes.
    resized: a run that begins with two processes and goes on with one.
    """
    folder = tmp_path_factory.mktemp("workflows")
    points = tiny_params()
    points["datasets"] = {"mixture2d": points["datasets"]["mixture2d"] | {"scale": "paper"}}
    everything = Workflow(cluster, folder / "everything", points)
    disturbed = Workflow(cluster, folder / "disturbed", tiny_unets(len(DISTURBED)))
    spare = Workflow(cluster, folder / "spare", tiny_unets(2), gpu_partition="spare")
    limited = Workflow(cluster, folder / "limited", tiny_unets(1))
    # A limit of some seconds after every start, however long that takes. Two minutes are for saving.
    limited.shadow("squeue", f'case "$*" in *%L*) echo 2:{SECONDS_LEFT}; exit;; esac')
    pair = Workflow(cluster, folder / "pair", tiny_unets(2), processes=2)
    resized = Workflow(cluster, folder / "resized", tiny_unets(1), processes=2)
    workflows = (everything, disturbed, spare, limited, pair, resized)
    try:
        disturbed.start(*WEIGHTS)
        spare.start(WEIGHTS[OUTLIVED])
        held = spare.trainer(OUTLIVED)
        jobs = disturb(disturbed, [disturbed.trainer(seed) for seed in DISTURBED])
        outlived = outlive(spare, held)
        limited.start(WEIGHTS[0])
        in_time = limited.trainer(0)
        everything.run(README_COMMAND)
        pair.start(WEIGHTS[WITHIN])
        resized.start(WEIGHTS[0])
        left = come_back(resized, 1)
        across = pair.submit("docs/two-nodes.sh", f"{RUN}/{ACROSS}")
        lost = lose_node(spare, outlived.other)
        alone = train_by_hand(folder / "alone", DISTURBED)
        together = train_by_hand(folder / "together", (WITHIN, ACROSS), "--processes", "2")
        passed = pass_limit(limited, in_time)
        for workflow in workflows:
            workflow.finish()
        wait_until(lambda: cluster.describe(across)["JobState"] not in ("PENDING", "RUNNING", "COMPLETING"), pause=0.5)
        yield SimpleNamespace(
            everything=everything, disturbed=disturbed, spare=spare, limited=limited, pair=pair, jobs=jobs,
            outlived=outlived, lost=lost, passed=passed, across=across, alone=alone, together=together,
            resized=resized, left=left,
        )  # fmt: skip
    except BaseException:
        print(*(workflow.logs() for workflow in workflows), cluster.logs(), sep="\n")  # noqa: T201
        raise
    finally:
        for workflow in workflows:
            workflow.kill()


def assert_same_training(root, other, seed):
    run = f"{RUN}/{seed}"
    assert weights(root, run) == weights(other, run)
    assert metrics(root, run) == metrics(other, run)
    found, expected = snapshots(root, run), snapshots(other, run)
    # Snakemake dates the folder by a file in it.
    assert {name: found[name] for name in found if not name.startswith(".snakemake")} == expected


def test_the_readmes_own_command_makes_every_declared_file_of_all(story):
    assert re.search(rf"^{README_COMMAND} ", (ROOT / "README.md").read_text(), re.MULTILINE)
    folder = story.everything.folder
    stages = Stages(Params(folder / "params.yaml"), "paper")
    assert [out for stage in stages for out in stage.outs if not (folder / out).exists()] == []


def test_light_work_stays_on_the_submit_node_and_the_rest_asks_for_no_gpu(story):
    jobs = story.everything.jobs()
    assert sorted(job["name"].split()[0] for job in jobs) == ["evaluate", "prepare", "reference", "train"]
    assert {job["partition"] for job in jobs} == {"cpu"}
    assert not any("gpu" in story.everything.cluster.describe(job["id"]).get("TresPerJob", "") for job in jobs)


def test_a_run_of_a_u_net_asks_for_one_gpu_and_memory_for_its_data(story):
    job = story.disturbed.jobs("train digits_ic_0")[0]
    described = story.disturbed.cluster.describe(job["id"])
    assert described["TresPerJob"] == "gres:gpu:1"
    assert (job["partition"], job["memory"], job["cpus"], job["limit"]) == ("gpu", "12000M", "4", "30:00")


def test_an_edited_rule_reruns_nothing(story):
    rules = story.everything.folder / "workflow/rules/runs.smk"
    rules.write_text(rules.read_text().replace("gcflow train", "gcflow  train") + "\n# A comment.\n")
    assert "Nothing to be done" in story.everything.call(*README_COMMAND.split(), "-n")


@pytest.mark.parametrize("seed", DISTURBED)
def test_a_disturbed_run_ends_with_the_bits_of_an_undisturbed_one(story, seed):
    assert_same_training(story.disturbed.folder, story.alone, seed)


@pytest.mark.parametrize("seed", [OUTLIVED, LOST])
def test_a_run_that_outlives_snakemake_or_its_node_does_too(story, seed):
    assert_same_training(story.spare.folder, story.alone, seed)


def test_slurms_sigterm_saves_and_the_next_job_goes_on_from_there(story):
    first, second = story.disturbed.attempts(f"train/digits_ic_{CANCELLED}")
    step = re.search(r"stopped by SIGTERM; saved at step (\d+) of 200", first)
    assert step, first
    assert f"resumes at step {step[1]}\n" in second


def test_a_run_longer_than_its_limit_saves_before_it_and_goes_on_under_its_number_without_a_retry(story):
    (log,) = story.limited.attempts("train/digits_ic_0")
    saved = re.findall(r"time budget of [\d.]+ minutes spent; saved at step (\d+) of 200", log)
    assert re.findall(r"resumes at step (\d+)\n", log) == saved
    # Twice at least: a slow machine does fewer steps before a limit.
    assert len(saved) >= 2
    described = story.limited.cluster.describe(story.passed)
    assert (described["JobState"], described["Restarts"]) == ("COMPLETED", str(len(saved)))
    assert_same_training(story.limited.folder, story.alone, 0)


def test_a_hung_job_ends_at_its_limit(story):
    cluster = story.disturbed.cluster
    assert cluster.describe(story.jobs[HUNG])["JobState"] == "TIMEOUT"
    assert len(story.disturbed.attempts(f"train/digits_ic_{HUNG}")) == 2


def test_a_requeued_job_goes_on_under_its_number_with_one_log(story):
    (log,) = story.disturbed.attempts(f"train/digits_ic_{REQUEUED}")
    assert re.search(r"saved at step (\d+) of 200.*resumes at step \1\n", log, re.DOTALL), log
    assert story.disturbed.cluster.describe(story.jobs[REQUEUED])["Restarts"] == "1"


def test_a_killed_trainer_is_retried_once(story):
    assert len(story.disturbed.attempts(f"train/digits_ic_{KILLED}")) == 2


def test_a_job_that_outlived_snakemake_is_waited_for(story):
    first, second = story.spare.attempts(f"train/digits_ic_{OUTLIVED}")
    seen = story.outlived
    assert seen.lone
    assert f"waits for process {seen.pid} " in second
    assert f"(Slurm job {seen.job})" in second
    assert "done: 200 steps" in first
    # The second found the end and published it again.
    assert "resumes at step 200" in second


def test_a_drained_node_ends_its_job_and_a_lost_one_gives_it_back(story):
    assert story.lost.drained == ("RUNNING", True)
    assert story.spare.cluster.describe(story.lost.job)["Restarts"] == "1"
    assert len(story.spare.attempts(f"train/digits_ic_{LOST}")) == 1


def test_mlflow_holds_one_run_per_run(story):
    for workflow, seeds in ((story.disturbed, DISTURBED), (story.spare, (OUTLIVED, LOST))):
        for _ in range(2):
            workflow.call("gcflow", "track", "sync")
        client = MlflowClient(tracking_uri=f"sqlite:///{workflow.folder / 'mlflow.db'}")
        experiment = client.get_experiment_by_name("tiny/digits")
        runs = client.search_runs([experiment.experiment_id])
        found = sorted(run.info.run_name for run in runs if "run" in run.data.tags)
        assert found == [f"{RUN}/{seed}" for seed in seeds]


def test_several_gpus_of_one_node_are_one_task(story):
    (job,) = story.pair.jobs(f"train digits_ic_{WITHIN}")
    described = story.pair.cluster.describe(job["id"])
    assert (described["TresPerJob"], described["NumTasks"], described["NumNodes"]) == ("gres:gpu:2", "1", "1")
    assert_same_training(story.pair.folder, story.together, WITHIN)


def test_a_preempted_run_that_comes_back_on_fewer_gpus_ends_with_the_bits_of_one(story):
    first, second = story.resized.attempts("train/digits_ic_0")
    (step,) = re.findall(r"saved at step (\d+) of 200", first)
    assert f"resumes at step {step}\n" in second
    jobs = story.resized.jobs("train digits_ic_0")
    gpus = [story.resized.cluster.describe(job["id"])["TresPerJob"] for job in jobs]
    assert (jobs[0]["id"], gpus) == (story.left, ["gres:gpu:2", "gres:gpu:1"])
    assert_same_training(story.resized.folder, story.alone, 0)


def test_a_run_over_two_nodes_has_the_bits_of_two_processes_on_one(story):
    described = story.pair.cluster.describe(story.across)
    assert described["JobState"] == "COMPLETED", story.pair.logs()
    assert described["NumNodes"] == "2"
    assert_same_training(story.pair.folder, story.together, ACROSS)
    assert "Nothing to be done" in story.pair.plan(WEIGHTS[ACROSS])


def test_nothing_half_written_is_left(story):
    for workflow in (story.everything, story.disturbed, story.spare, story.limited, story.pair, story.resized):
        assert [path for path in temporary_files(workflow.folder) if "gcflow" in path.name] == []
