# One `gcflow track sync --watch` beside the workflow, which keeps MLflow up to date.

import subprocess
from contextlib import suppress

# By the main process alone: Snakemake starts that of a job with --no-hooks.
WATCH = []


def begin_watch():
    """Starts it with a pipe to its standard input, whose end tells it to end, whatever ends Snakemake."""
    if PARAMS.tracking.watch_every is None:
        return
    log = Path("results/logs/track-watch.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    command = f"nice -n 10 gcflow track sync --watch --scale {SCALE}".split()
    # Ctrl-C is Snakemake's, which then ends the watch.
    apart = {"stdin": subprocess.PIPE, "start_new_session": True}
    try:
        with log.open("ab") as output:
            WATCH.append(
                subprocess.Popen(command, stdout=output, stderr=output, **apart)
            )
    except OSError as error:
        logger.warning(
            f"MLflow is not kept up to date while the workflow runs ({error})"
        )


def end_watch():
    """Lets it make a last pass, by itself if that takes longer."""
    for watch in WATCH:
        watch.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            watch.wait(timeout=5)
