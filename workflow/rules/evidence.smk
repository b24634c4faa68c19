# What undecided claims lack: a round of more seeds, and another, until every claim is decided or has the most seeds allowed.


rule decided:
    input:
        "claims.yaml",
        lambda wildcards: STAGES.evidence,
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
