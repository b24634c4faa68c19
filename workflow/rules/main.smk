# What the main process does before the first job and after the last; that of a job is started with --no-hooks.

import shutil
import signal
import subprocess
import sys
import time

from filelock import FileLock, Timeout

# Whoever holds it lives: `--unlock` ends no Snakemake, and two would delete each other's outputs.
ALONE = FileLock(".snakemake/alone", timeout=0)
FAILURES = Path(".snakemake/failures")


def begin():
    try:
        ALONE.acquire()
    except Timeout:
        raise WorkflowError("Snakemake still runs here: end it first") from None
    # A terminal that is closed ends it as Ctrl-C does.
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    # Here stages tell of what their retries can only repeat; a new start by a person forgets it.
    shutil.rmtree(FAILURES, ignore_errors=True)
    FAILURES.mkdir()
    os.environ.update(GCFLOW_FAILURES=str(FAILURES.resolve()))


def slurm():
    """The plugin that submits to Slurm, if it is in use."""
    executor = workflow.scheduler._executor
    return executor if hasattr(executor, "run_uuid") else None


def submission(executor, job):
    """The command that will submit a job, without what it will run."""
    from snakemake_executor_plugin_slurm.submit_string import get_submit_command
    from snakemake_executor_plugin_slurm.utils import set_gres_string

    params = {
        "run_uuid": executor.run_uuid,
        "slurm_logfile": os.devnull,
        "comment_str": "",
        "account": next(executor.get_account_arg(job)),
        "partition": executor.get_partition_arg(job),
        "workdir": None,
    }
    settings = workflow.executor_settings
    return get_submit_command(job, params, settings) + set_gres_string(job)


def ask_slurm(executor):
    """Lets Slurm refuse a partition, an account, a number of GPUs before anything is submitted."""
    jobs = [job for job in workflow.dag.needrun_jobs() if not job.is_local]
    submitted = {submission(executor, job) for job in jobs}
    tests = [f"{command} --test-only --wrap true" for command in submitted]
    # Without accounting it answers nothing, and jobs are waited for for ever.
    if workflow.executor_settings.status_command == "sacct":
        tests.append("sacct")
    for test in tests:
        asked = subprocess.run(test, shell=True, capture_output=True, text=True)
        if asked.returncode:
            raise WorkflowError(f"Slurm refuses {test}\n{asked.stderr.strip()}")


def keep_min_job_age():
    """The plugin asks for it at every look, and turns to `sacct` for a week where Slurm does not answer just then."""
    import snakemake_executor_plugin_slurm as plugin

    age = plugin.get_min_job_age()
    plugin.get_min_job_age = lambda: age


def cancel_jobs(executor):
    """By the name of all jobs of this start: the plugin's list of them is empty while Slurm does not answer it."""
    scancel = ["scancel", f"--name={executor.run_uuid}"]
    while subprocess.run(scancel, capture_output=True).returncode:
        logger.warning(
            "Slurm does not answer: the jobs are cancelled once it does. Ctrl-C again leaves them."
        )
        time.sleep(10)


def seeds_text():
    return Path("seeds.yaml").read_text() if Path("seeds.yaml").exists() else ""


KNOWN_SEEDS = seeds_text()


def next_round():
    """Begins Snakemake anew, as it was begun, where its last job added seeds: the same process, so signals reach it."""
    if seeds_text() != KNOWN_SEEDS:
        workflow.persistence.unlock()
        sys.stdout.flush()
        sys.stderr.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


onstart:
    begin()
    if executor := slurm():
        ask_slurm(executor)
        keep_min_job_age()
        executor.cancel_jobs = lambda active_jobs: cancel_jobs(executor)
    begin_watch()


onsuccess:
    end_watch()
    next_round()


onerror:
    end_watch()
    # Those that were submitted while the others were cancelled.
    if executor := slurm():
        cancel_jobs(executor)
    for file in sorted(FAILURES.iterdir()):
        logger.error(f"gcflow: error: {file.read_text().partition(' ')[2]}")
