"""The stages: declared files in, declared files out. Each module is one verb of the command line, or what they share."""
