"""The looks of figures, and the sheets that they are drawn on."""
