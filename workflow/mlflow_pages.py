"""The pages of the runs in mlflow.db, a line per experiment, those with the most runs first: for `make ui`.

    python workflow/mlflow_pages.py http://127.0.0.1:5000

MLflow's own first page is about language models, and shows a new browser none of them. An experiment with numbers has a
view of them, shared under a name.
"""

import sqlite3
import sys
from contextlib import closing
from pathlib import Path

QUERY = """
SELECT experiments.name, experiment_id, experiment_id IN
  (SELECT experiment_id FROM experiment_tags WHERE key = 'mlflow.sharedViewState.gcflow')
FROM experiments JOIN runs USING (experiment_id)
WHERE runs.lifecycle_stage = 'active' GROUP BY experiment_id ORDER BY COUNT(*) DESC
"""

database, address = Path("mlflow.db"), sys.argv[1]
if database.exists():
    with closing(sqlite3.connect(database)) as connection:
        for name, number, has_view in connection.execute(QUERY):
            page = f"{address}/#/experiments/{number}/runs?workflowType=machine_learning"
            sys.stdout.write(f"  {name}: {page}{'&viewStateShareKey=gcflow' if has_view else ''}\n")
