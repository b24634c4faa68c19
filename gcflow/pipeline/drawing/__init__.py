"""How figures look, and the kinds of figures. Most need no torch, so they do not import it."""
