# What the main process does before the first job and after the last; that of a job is started with --no-hooks.

import shutil
import signal
import subprocess
import time

from gcflow.pipeline.lock import RunLock, newest_lease

CLAIM = Path(".snakemake", "claim")
CLAIMED = RunLock(CLAIM, "this folder")
FAILURES = Path(".snakemake", "failures")


def claim_folder():
    """Keeps out a second Snakemake, which would delete this one's outputs: --unlock does not end the first."""
    lease = newest_lease(CLAIM)
    if lease and lease.held:
        raise WorkflowError(
            f"Snakemake still runs here, as {lease.holder}: end it first"
        )
    CLAIMED.__enter__()


def collect_failures():
    """Has the stages tell of what is no use to retry (`gcflow.cli`): a new start by a person forgets it."""
    shutil.rmtree(FAILURES, ignore_errors=True)
    FAILURES.mkdir(parents=True)
    os.environ["GCFLOW_FAILURES"] = str(FAILURES.resolve())


def tell_failures():
    for file in sorted(FAILURES.glob("*")):
        logger.error(f"gcflow: error: {file.read_text().partition(' ')[2]}")


def slurm():
    """The plugin that submits to Slurm, if it is in use."""
    executor = workflow.scheduler._executor
    return executor if hasattr(executor, "run_uuid") else None


def ask_slurm(executor):
    """Lets Slurm refuse a partition, an account, a time limit, a number of GPUs before anything is submitted."""
    from snakemake_executor_plugin_slurm.submit_string import get_submit_command
    from snakemake_executor_plugin_slurm.utils import set_gres_string

    calls = {}
    for job in workflow.dag.needrun_jobs():
        if not job.is_local:
            params = {
                "run_uuid": executor.run_uuid,
                "slurm_logfile": os.devnull,
                "comment_str": "",
                "account": next(executor.get_account_arg(job)),
                "partition": executor.get_partition_arg(job),
                "workdir": workflow.workdir_init,
            }
            settings = workflow.executor_settings
            call = get_submit_command(job, params, settings) + set_gres_string(job)
            calls[call] = job
    for call, job in calls.items():
        test = f"{call} --test-only --wrap true"
        asked = subprocess.run(test, shell=True, capture_output=True, text=True)
        if asked.returncode:
            raise WorkflowError(
                f"Slurm refuses to {job.message}: {asked.stderr.strip()}\n    {test}"
            )


def cancel_jobs(executor):
    """By the name that all jobs of this start have: the plugin's list is empty while it waits for an answer of Slurm."""
    scancel = ["scancel", f"--name={executor.run_uuid}"]
    while subprocess.run(scancel, capture_output=True).returncode:
        logger.warning(
            "Slurm does not answer: the jobs are cancelled as soon as it does. Ctrl-C again leaves them to themselves."
        )
        time.sleep(10)


onstart:
    claim_folder()
    # A terminal that is closed ends Snakemake as Ctrl-C does.
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    collect_failures()
    if executor := slurm():
        ask_slurm(executor)
        executor.cancel_jobs = lambda active_jobs: cancel_jobs(executor)
    begin_watch()


onsuccess:
    end_watch()
    CLAIMED.__exit__(None, None, None)


onerror:
    end_watch()
    # Those that were being submitted while the others were cancelled.
    if executor := slurm():
        cancel_jobs(executor)
    tell_failures()
    CLAIMED.__exit__(None, None, None)
