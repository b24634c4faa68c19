"""The ledger of claims: the paper's findings as tests, decided from the files of the stages, with torch left out."""
