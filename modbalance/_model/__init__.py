"""The user's model: its parts, the forwards seen by hooks, running parts again, unimodal logits."""
