"""MLflow as a mirror of the runs' own files, which are the truth.

There is one MLflow run per run of ours and configuration, found again by its tags, however often it was killed and
resumed; another one after its results were deleted or `--restart`. A point is sent once a checkpoint covers its step,
so nothing that is sent is ever trained again; and only if MLflow's history lacks it, so sending twice changes nothing.
"""
