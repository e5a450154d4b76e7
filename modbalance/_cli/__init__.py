"""The commands of the command line, one per module; `modbalance.cli` lists them."""
