"""A real Slurm that refuses, or does not answer: what is asked of it is known before, and no job is forgotten."""

import re
import signal
import subprocess
import time
from types import SimpleNamespace

import pytest
from projects import wait_until
from slurm_cluster import missing
from slurm_workflows import RUN, Workflow, tiny_unets

ABSENT = missing()
pytestmark = [pytest.mark.slurm, pytest.mark.skipif(ABSENT is not None, reason=f"no Slurm to test on: {ABSENT}")]

WEIGHTS = f"results/{RUN}/seed0/weights.safetensors"
# The plugin's own patience is over in a blink.
SECONDS_WITHOUT_ANSWER = 15


@pytest.fixture
def workflow(cluster, tmp_path):
    made = []

    def make(name, grain=8, **options):
        params = tiny_unets(1)
        params["datasets"]["digits"]["training"]["grain"] = grain
        made.append(Workflow(cluster, tmp_path / name, params, **options))
        return made[-1]

    yield make
    for one in made:
        one.kill()


def state(workflow):
    return workflow.cluster.describe(workflow.job(0))["JobState"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gpu_partition": "absent"}, "invalid partition specified: absent"),
        ({"processes": 8, "grain": 2}, "Requested node configuration is not available"),
    ],
)
def test_what_slurm_will_not_take_is_refused_in_its_own_words_before_anything_is_submitted(workflow, options, words):
    refused = workflow("refused", **options)
    refused.start(WEIGHTS)
    assert refused.end() != 0
    assert "Slurm refuses sbatch" in refused.output.read_text()
    assert words in refused.output.read_text()
    assert refused.jobs() == []


def test_accounting_that_a_cluster_has_not_is_not_waited_for(workflow):
    refused = workflow("unaccounted")
    refused.environment["GCFLOW_SLURM_STATUS"] = "sacct"
    refused.start(WEIGHTS)
    assert refused.end() != 0
    assert "Slurm refuses sacct" in refused.output.read_text()
    assert refused.jobs() == []


def test_bad_input_is_told_by_snakemake_and_its_retries_only_repeat_it(workflow):
    damaged = workflow("damaged")
    samples = damaged.folder / "data/digits/samples.npy"
    samples.write_bytes(samples.read_bytes()[:-1] + b"?")
    damaged.start(WEIGHTS)
    assert damaged.end() != 0
    logs = damaged.attempts("train/digits_ic_0")
    assert len(logs) == 3
    (line,) = {line for log in logs for line in re.findall(r"^gcflow: error: .*$", log, re.MULTILINE)}
    assert "sha256 differs" in line
    assert line in damaged.output.read_text().splitlines()[-6:]


@pytest.fixture
def outage(workflow, cluster, tmp_path):
    """Two spells without an answer, of two commands and of the controller; who hangs up or interrupts in the midst."""
    patient, hung_up, interrupted = (workflow(name) for name in ("patient", "hung-up", "interrupted"))
    flag = tmp_path / "no-answer"
    for one in (patient, hung_up, interrupted):
        one.shadow("squeue", f"[ -e {flag} ] && exit 1")
        # Without it the plugin takes `sacct` for what `squeue` cannot tell.
        one.shadow("scontrol", f'[ "$*" = "show config" ] && [ -e {flag} ] && exit 1')
        one.start(WEIGHTS)
    trainers = [one.trainer(0) for one in (patient, hung_up, interrupted)]

    patient.call("snakemake", "--profile", "slurm", "--unlock")
    again = subprocess.run(
        patient.process.args, cwd=patient.folder, env=patient.environment, capture_output=True, text=True, check=False
    )

    flag.touch()
    time.sleep(SECONDS_WITHOUT_ANSWER)
    hung_up.process.send_signal(signal.SIGHUP)
    wait_until(lambda: state(hung_up) == "CANCELLED", pause=0.2)
    flag.unlink()
    hung_up.end()

    cluster.lose_controller()
    time.sleep(SECONDS_WITHOUT_ANSWER)
    interrupted.process.send_signal(signal.SIGINT)
    wait_until(lambda: "Slurm does not answer" in interrupted.output.read_text())
    cluster.start_controller()
    interrupted.end()
    trainers[0].go_on()
    patient.finish()
    return SimpleNamespace(patient=patient, hung_up=hung_up, interrupted=interrupted, again=again.stderr)


def test_no_job_is_forgotten_while_slurm_does_not_answer(outage):
    assert (outage.patient.folder / WEIGHTS).exists()
    assert state(outage.patient) == "COMPLETED"
    assert len(outage.patient.attempts("train/digits_ic_0")) == 1
    for one in (outage.hung_up, outage.interrupted):
        assert state(one) == "CANCELLED"
        (log,) = one.attempts("train/digits_ic_0")
        assert "stopped by SIGTERM; saved at step" in log
    # Ended in order: nothing is locked.
    assert "Nothing to be done" not in outage.hung_up.plan(WEIGHTS)
    assert "Snakemake still runs here" in outage.again
