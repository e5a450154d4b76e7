"""Readers and front ends: from a file on disk to the tensor of a sample."""
