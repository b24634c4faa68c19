"""What a target costs before it is submitted: which jobs, how long each takes on a measured machine, how much disk."""
