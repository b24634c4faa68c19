from snakemake.utils import min_version

min_version("9.27")


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/resources.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/runs.smk"
include: "workflow/rules/views.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/evidence.smk"
include: "workflow/rules/tracking.smk"
include: "workflow/rules/watch.smk"
include: "workflow/rules/main.smk"


# For workflow/report/workflow.rst.
config["rule_graph"] = rule_graph(STAGES)


rule all:
    default_target: True
    input:
        [out for stage in STAGES for out in stage.outs],
        PAPERS_VIEWS,
        "results/tracking.json",
    localrule: True
    message:
        "all"
