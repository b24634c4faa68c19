# The grid: every run is trained once and measured once.


rule train:
    input:
        DATA,
        reads("train"),
    output:
        config="results/{dataset}/{method}/seed{seed}/config.json",
        weights="results/{dataset}/{method}/seed{seed}/weights.safetensors",
        metrics="results/{dataset}/{method}/seed{seed}/metrics.jsonl",
        jobs="results/{dataset}/{method}/seed{seed}/jobs.json",
        snapshots=directory("results/{dataset}/{method}/seed{seed}/snapshots"),
    log:
        "results/{dataset}/logs/train-{method}-{seed}.log",
    benchmark:
        "results/{dataset}/benchmarks/train-{method}-{seed}.tsv"
    priority: train_priority
    threads: train_threads
    resources:
        gpu=train_gpus,
        processes=train_processes,
        cpus_per_task=train_cpus,
        mem_mb=train_memory,
        runtime=long_minutes,
        slurm_partition=partition,
    params:
        slice=slice_of("train"),
    message:
        "train {wildcards.dataset}/{wildcards.method}/{wildcards.seed}"
    shell:
        "gcflow train {wildcards.dataset}/{wildcards.method}/{wildcards.seed} "
        "--gpus {resources.gpu} --processes {resources.processes} 2>&1 | log_to {log}"


rule evaluate:
    input:
        DATA,
        "results/{dataset}/{method}/seed{seed}/snapshots",
        "results/{dataset}/{method}/seed{seed}/metrics.jsonl",
        reads("evaluate"),
    output:
        metrics="results/{dataset}/{method}/seed{seed}/evaluation/metrics.json",
        summary="results/{dataset}/{method}/seed{seed}/evaluation/summary.json",
        curves=directory("results/{dataset}/{method}/seed{seed}/evaluation/curves"),
        samples="results/{dataset}/{method}/seed{seed}/evaluation/samples.npy",
        grid=report(
            "results/{dataset}/{method}/seed{seed}/evaluation/samples.png",
            caption="../report/samples.rst",
            category="Samples of each run",
            subcategory="{dataset}",
            labels={"method": "{method}", "seed": "{seed}"},
        ),
        grids=directory("results/{dataset}/{method}/seed{seed}/evaluation/grids"),
    log:
        "results/{dataset}/logs/evaluate-{method}-{seed}.log",
    benchmark:
        "results/{dataset}/benchmarks/evaluate-{method}-{seed}.tsv"
    resources:
        gpu=gpus,
        cpus_per_task=cpus,
        mem_mb=memory,
        runtime=minutes,
        slurm_partition=partition,
    params:
        slice=slice_of("evaluate"),
    message:
        "evaluate {wildcards.dataset}/{wildcards.method}/{wildcards.seed}"
    shell:
        "gcflow evaluate {wildcards.dataset}/{wildcards.method}/{wildcards.seed} --gpus {resources.gpu} 2>&1 | log_to {log}"


rule transport:
    input:
        DATA,
        reads("transport"),
    output:
        "results/{dataset}/transport.json",
    log:
        "results/{dataset}/logs/transport.log",
    benchmark:
        "results/{dataset}/benchmarks/transport.tsv"
    resources:
        gpu=gpus,
        cpus_per_task=cpus,
        mem_mb=memory,
        runtime=minutes,
        slurm_partition=partition,
    params:
        slice=slice_of("transport"),
    message:
        "transport {wildcards.dataset}"
    shell:
        "gcflow transport {wildcards.dataset} --gpus {resources.gpu} 2>&1 | log_to {log}"


rule discrepancy:
    input:
        DATA,
        "results/{dataset}/{method}/seed{seed}/snapshots",
        reads("discrepancy"),
    output:
        "results/{dataset}/{method}/seed{seed}/discrepancy.json",
    log:
        "results/{dataset}/logs/discrepancy-{method}-{seed}.log",
    benchmark:
        "results/{dataset}/benchmarks/discrepancy-{method}-{seed}.tsv"
    resources:
        gpu=gpus,
        cpus_per_task=cpus,
        mem_mb=memory,
        runtime=minutes,
        slurm_partition=partition,
    params:
        slice=slice_of("discrepancy"),
    message:
        "discrepancy {wildcards.dataset}/{wildcards.method}/{wildcards.seed}"
    shell:
        "gcflow discrepancy {wildcards.dataset}/{wildcards.method}/{wildcards.seed} --gpus {resources.gpu} 2>&1 | log_to {log}"


rule theory:
    input:
        reads("theory"),
    output:
        "results/{dataset}/theory.json",
    log:
        "results/{dataset}/logs/theory.log",
    benchmark:
        "results/{dataset}/benchmarks/theory.tsv"
    # Longer than all that follows the trainings.
    priority: 1
    params:
        slice=slice_of("theory"),
    message:
        "theory {wildcards.dataset}"
    shell:
        "gcflow theory {wildcards.dataset} 2>&1 | log_to {log}"
