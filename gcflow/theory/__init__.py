"""The paper's theory as numerical checks, on data whose velocity and flow are known to many digits."""
