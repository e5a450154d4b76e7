"""Clusters of the rows of a matrix by k-means, and their purity."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor


def clustered(rows: Tensor, clusters: int, n_init: int) -> Tensor:
    """Return the cluster of each row (N, D), as (N,): min-max scaling of each column to [-1, 1], then k-means."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.preprocessing import MinMaxScaler
    from threadpoolctl import threadpool_limits

    scaled = MinMaxScaler(feature_range=(-1, 1)).fit_transform(rows.numpy())
    # One thread adds up in one order: a resumed run finds the clusters that the uninterrupted one would have found.
    with threadpool_limits(limits=1), warnings.catch_warnings():
        # Equal rows make fewer clusters than K; their purity is defined all the same.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return torch.from_numpy(KMeans(clusters, n_init=n_init, random_state=0).fit_predict(scaled)).long()


def purity(cluster: Tensor, label: Tensor) -> float:
    """Return the purity P of clusters by class, in (0, 1]; both (N,)."""
    pairs, counts = torch.unique(torch.stack([cluster, label]), dim=1, return_counts=True)
    most = torch.zeros(int(cluster.max()) + 1, dtype=torch.long).scatter_reduce_(0, pairs[0], counts, "amax")
    return int(most.sum()) / len(label)  # P = 1/N sum over clusters of the count of its most frequent class


def lexicographic(rows: Tensor) -> Tensor:
    """Return the order (N,) that sorts rows (N, D) by their first entry, ties by the next, and so on."""
    order = torch.arange(len(rows))
    for column in reversed(rows.unbind(1)):
        order = order[column[order].argsort(stable=True)]
    return order
