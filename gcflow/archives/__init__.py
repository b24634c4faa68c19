"""Reading the official archives of data sets: where images lie, decoding them, and writing prepared arrays."""
