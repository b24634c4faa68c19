# MLflow mirrors the runs' own files. A server that is down costs a warning; `gcflow track sync` completes it later.


rule track:
    input:
        tracked_files,
    output:
        "results/tracking.json",
    log:
        "results/logs/track.log",
    localrule: True
    params:
        scale=SCALE,
    shell:
        "gcflow track sync --scale {params.scale} 2>&1 | tee {log}"
