"""Tools around the pipeline: they look at the stages, no stage looks at them."""
