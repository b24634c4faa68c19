"""The pages of the runs in mlflow.db, a line per experiment, those with the most runs first: for `make ui`.

    python workflow/mlflow_pages.py http://127.0.0.1:5000

MLflow's own first page is about language models, and shows a new browser none of them.
"""

import sqlite3
import sys
from contextlib import closing
from pathlib import Path

QUERY = """
SELECT experiments.name, experiments.experiment_id FROM experiments JOIN runs USING (experiment_id)
WHERE runs.lifecycle_stage = 'active' GROUP BY experiments.experiment_id ORDER BY COUNT(*) DESC
"""

database, address = Path("mlflow.db"), sys.argv[1]
if database.exists():
    with closing(sqlite3.connect(database)) as connection:
        for name, number in connection.execute(QUERY):
            sys.stdout.write(f"  {name}: {address}/#/experiments/{number}/runs?workflowType=machine_learning\n")
