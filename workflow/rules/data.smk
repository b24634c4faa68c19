# Data arrays, and what generated samples are compared in.


rule prepare:
    output:
        manifest="data/{dataset}/manifest.json",
        samples="data/{dataset}/samples.npy",
        labels="data/{dataset}/labels.npy",
    log:
        "results/{dataset}/logs/prepare.log",
    benchmark:
        "results/{dataset}/benchmarks/prepare.tsv"
    params:
        slice=prepare_slice,
    shell:
        "gcflow prepare {wildcards.dataset} 2>&1 | tee {log}"


rule features:
    input:
        features_inputs,
    output:
        "results/{dataset}/features/classifier.safetensors",
    log:
        "results/{dataset}/logs/features.log",
    benchmark:
        "results/{dataset}/benchmarks/features.tsv"
    params:
        slice=features_slice,
    shell:
        "gcflow features {wildcards.dataset} 2>&1 | tee {log}"


rule reference:
    input:
        reference_inputs,
    output:
        "results/{dataset}/features/reference.safetensors",
    log:
        "results/{dataset}/logs/reference.log",
    benchmark:
        "results/{dataset}/benchmarks/reference.tsv"
    params:
        slice=reference_slice,
    shell:
        "gcflow reference {wildcards.dataset} 2>&1 | tee {log}"
