"""Lists, splits, samplers and datasets: which samples there are, in which order, and how they are put together."""
