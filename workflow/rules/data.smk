# Data arrays, and what generated samples are compared in.


rule prepare:
    input:
        reads("prepare"),
    output:
        manifest="data/{dataset}/manifest.json",
        samples="data/{dataset}/samples.npy",
        labels="data/{dataset}/labels.npy",
        held_out="data/{dataset}/held_out.npy",
    log:
        "results/{dataset}/logs/prepare.log",
    benchmark:
        "results/{dataset}/benchmarks/prepare.tsv"
    # Before any training: the longest may be of this data.
    priority: sys.maxsize
    resources:
        cpus_per_task=prepare_cpus,
        mem_mb=memory,
        runtime=long_minutes,
    params:
        slice=slice_of("prepare"),
    message:
        "prepare {wildcards.dataset}"
    shell:
        "gcflow prepare {wildcards.dataset} 2>&1 | log_to {log}"


rule features:
    input:
        reads("features"),
    output:
        "results/{dataset}/features/{extractor}",
    log:
        "results/{dataset}/logs/features-{extractor}.log",
    benchmark:
        "results/{dataset}/benchmarks/features-{extractor}.tsv"
    params:
        slice=slice_of("features"),
    message:
        "features {wildcards.dataset}"
    shell:
        "gcflow features {wildcards.dataset} 2>&1 | log_to {log}"


rule reference:
    input:
        DATA,
        reads("reference"),
    output:
        "results/{dataset}/features/reference-{protocol}.safetensors",
    log:
        "results/{dataset}/logs/reference-{protocol}.log",
    benchmark:
        "results/{dataset}/benchmarks/reference-{protocol}.tsv"
    resources:
        gpu=gpus,
        cpus_per_task=cpus,
        mem_mb=memory,
        runtime=minutes,
        slurm_partition=partition,
    params:
        slice=slice_of("reference"),
    message:
        "reference {wildcards.dataset} {wildcards.protocol}"
    shell:
        "gcflow reference {wildcards.dataset} {wildcards.protocol} --gpus {resources.gpu} 2>&1 | log_to {log}"


rule pretrained:
    output:
        "checkpoints/{name}.safetensors",
    log:
        "results/logs/pretrained-{name}.log",
    benchmark:
        "results/benchmarks/pretrained-{name}.tsv"
    params:
        slice=slice_of("pretrained"),
    message:
        "pretrained {wildcards.name}"
    shell:
        "gcflow pretrained {wildcards.name} 2>&1 | log_to {log}"
