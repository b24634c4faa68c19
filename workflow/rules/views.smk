# Tables, figures and the ledger of claims: cheap, from the runs' own files.


rule table:
    input:
        reads("table"),
    output:
        json="results/{dataset}/tables/{name}.json",
        markdown="results/{dataset}/tables/{name}.md",
        csv="results/{dataset}/tables/{name}.csv",
        tex="results/{dataset}/tables/{name}.tex",
    log:
        "results/{dataset}/logs/table-{name}.log",
    benchmark:
        "results/{dataset}/benchmarks/table-{name}.tsv"
    localrule: True
    params:
        slice=slice_of("table"),
    message:
        "table {wildcards.dataset} {wildcards.name}"
    shell:
        "gcflow table {wildcards.dataset} {wildcards.name} 2>&1 | log_to {log}"


rule figure:
    input:
        reads("figure"),
    output:
        png=report(
            "results/{dataset}/figures/{name}.png",
            caption="../report/figure.rst",
            category="Figures",
            subcategory="{dataset}",
            labels=figure_labels,
        ),
        svg="results/{dataset}/figures/{name}.svg",
        csv="results/{dataset}/figures/{name}.csv",
    log:
        "results/{dataset}/logs/figure-{name}.log",
    benchmark:
        "results/{dataset}/benchmarks/figure-{name}.tsv"
    localrule: True
    params:
        slice=slice_of("figure"),
        title=figure_title,
    message:
        "figure {wildcards.dataset} {wildcards.name}"
    shell:
        "gcflow figure {wildcards.dataset} {wildcards.name} 2>&1 | log_to {log}"


rule claims:
    input:
        "claims.yaml",
        reads("claims"),
    output:
        json="results/claims.json",
        markdown="results/claims.md",
        png=report(
            "results/claims.png",
            caption="../report/claims.rst",
            category="Claims",
            labels={"claims": "effects with their intervals"},
        ),
        svg="results/claims.svg",
        course_png=report(
            "results/claims-course.png",
            caption="../report/claims.rst",
            category="Claims",
            labels={"claims": "effects against the number of seeds"},
        ),
        course_svg="results/claims-course.svg",
    log:
        "results/logs/claims.log",
    benchmark:
        "results/benchmarks/claims.tsv"
    localrule: True
    params:
        slice=slice_of("claims"),
        scale=SCALE,
    message:
        "claims"
    shell:
        "gcflow claims --scale {params.scale} 2>&1 | log_to {log}"


# The paper's tables and figures by their names there: `snakemake table1` makes it on every data set of the scale.
for view, stages in VIEWS.items():

    rule:
        name:
            view
        input:
            [out for stage in stages for out in stage.outs],
        localrule: True
        message:
            "{rule}"


rule first:
    input:
        first_runs,
    log:
        "results/logs/first.log",
    localrule: True
    params:
        table=f"gcflow table {FIRST.dataset} {FIRST.item} && " if FIRST else "",
        scale=SCALE,
    message:
        "{rule}"
    shell:
        "({params.table}gcflow report --scale {params.scale}) 2>&1 | log_to {log}"
