"""Training and evaluation of one run, and several processes that train one model."""
