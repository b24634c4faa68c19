# MLflow mirrors the runs' own files. A server that is down costs a warning; `gcflow track sync` completes it later.


rule track:
    input:
        [out for stage in STAGES for out in stage.outs],
    output:
        "results/tracking.json",
    log:
        "results/logs/track.log",
    localrule: True
    params:
        scale=SCALE,
    message:
        "track"
    shell:
        "gcflow track sync --scale {params.scale} 2>&1 | log_to {log}"
