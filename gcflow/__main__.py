"""`python -m gcflow`: what a launcher such as torchrun starts."""

from gcflow.cli import main

main()
