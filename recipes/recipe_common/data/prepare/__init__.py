"""The command `prepare`: from raw downloads to the files that recipes read."""
