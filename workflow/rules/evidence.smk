# What undecided claims lack: a round of more seeds, and another, until every claim is decided or has the most seeds allowed.

import sys


rule decided:
    input:
        "claims.yaml",
        STAGES.evidence,
    output:
        "results/decided.json",
    log:
        "results/logs/decided.log",
    localrule: True
    params:
        slice=json.dumps(STAGES.claims().slice(PARAMS) if PARAMS.claims else {}),
        scale=SCALE,
    message:
        "decided"
    shell:
        "gcflow decide --scale {params.scale} 2>&1 | log_to {log}"


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
