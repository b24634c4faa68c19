"""`gcflow doctor`: whether this machine can run a target, and what to do where it cannot."""
