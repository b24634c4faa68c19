# Tables and figures: cheap, from the runs' own files.


rule table:
    input:
        table_inputs,
    output:
        markdown="results/{dataset}/tables/{name}.md",
        csv="results/{dataset}/tables/{name}.csv",
        tex="results/{dataset}/tables/{name}.tex",
        html=report(
            "results/{dataset}/tables/{name}.html",
            caption="../report/table.rst",
            category="Tables",
            subcategory="{dataset}",
            labels={"table": "{name}"},
        ),
    log:
        "results/{dataset}/logs/table-{name}.log",
    benchmark:
        "results/{dataset}/benchmarks/table-{name}.tsv"
    params:
        slice=table_slice,
        title=table_title,
    shell:
        "gcflow table {wildcards.dataset} {wildcards.name} 2>&1 | tee {log}"


rule figure:
    input:
        figure_inputs,
    output:
        png=report(
            "results/{dataset}/figures/{name}.png",
            caption="../report/figure.rst",
            category="Figures",
            subcategory="{dataset}",
            labels={"figure": "{name}"},
        ),
        svg="results/{dataset}/figures/{name}.svg",
    log:
        "results/{dataset}/logs/figure-{name}.log",
    benchmark:
        "results/{dataset}/benchmarks/figure-{name}.tsv"
    params:
        slice=figure_slice,
        title=figure_title,
    shell:
        "gcflow figure {wildcards.dataset} {wildcards.name} 2>&1 | tee {log}"
