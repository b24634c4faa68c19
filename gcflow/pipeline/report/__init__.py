"""`gcflow report`: everything that was measured, on one page that asks for nothing else."""
