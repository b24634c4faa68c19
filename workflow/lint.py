"""`snakemake --lint` with the one exception that this workflow takes.

Rules name no conda environment or container: `requirements.lock` is the one environment of every stage, whoever runs it
(Snakemake, DVC or a person), and the Makefile installs it.
"""

import re
import subprocess
import sys

EXCEPTION = "Specify a conda environment or container for each rule."

result = subprocess.run(["snakemake", "--lint"], capture_output=True, text=True, check=False)
output = result.stdout + result.stderr
findings = re.findall(r"^    \* (.*?):?$", output, flags=re.MULTILINE)
clean = "Congratulations, your workflow is in a good condition!" in output
if not clean and (not findings or set(findings) != {EXCEPTION}):
    sys.stderr.write(output)
    sys.exit(1)
