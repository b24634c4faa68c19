"""The stages: declared files in, declared files out. A module is a verb of the command line, or what verbs share."""
