"""`gcflow status`: which job trains what, and how far it is."""
