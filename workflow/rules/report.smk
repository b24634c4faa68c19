# The page that people read. Snakemake's own, of jobs and their times, is results/workflow-report.html.


rule report:
    input:
        reads("report"),
    output:
        "results/report.html",
    log:
        "results/logs/report.log",
    benchmark:
        "results/benchmarks/report.tsv"
    localrule: True
    params:
        slice=slice_of("report"),
        scale=SCALE,
    message:
        "report"
    shell:
        "gcflow report --scale {params.scale} 2>&1 | log_to {log}"
