"""Connected regions of a mask, and masks grown at their border."""

from __future__ import annotations

import numpy as np


def connected_regions(mask: np.ndarray, least: int = 1) -> list[np.ndarray]:
    """Splits a mask into its connected regions (neighbours share a side), the largest first.

    The mask is cut into horizontal runs; runs of neighbouring rows that overlap belong together.

    Args:
        mask: Boolean array (H, W).
        least: Regions of fewer pixels are left out.

    Returns:
        One boolean array (H, W) for each region.
    """
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(edges == 1)
    stops = np.nonzero(edges == -1)[1]
    roots = _join_runs(rows.tolist(), starts.tolist(), stops.tolist())
    labels = np.full(mask.shape, -1)
    labels[mask] = np.repeat(roots, stops - starts)  # both sides go row by row, from left to right
    names, areas = np.unique(labels[mask], return_counts=True)
    order = np.argsort(-areas, kind="stable")
    return [labels == names[i] for i in order if areas[i] >= least]


def grow(mask: np.ndarray, steps: int) -> np.ndarray:
    """A mask (H, W) with every pixel that lies at most `steps` rows and columns away from it."""
    height, width = mask.shape
    padded, shifts = np.pad(mask, steps), range(2 * steps + 1)
    taller = np.logical_or.reduce([padded[k : k + height] for k in shifts])
    return np.logical_or.reduce([taller[:, k : k + width] for k in shifts])


def _join_runs(rows: list[int], starts: list[int], stops: list[int]) -> np.ndarray:
    """The representative of every run after joining those that touch (union-find)."""
    parent = list(range(len(rows)))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = run = parent[parent[run]]
        return run

    above = 0
    for run in range(len(rows)):
        # Runs that end before this one begins, or lie more than one row up, touch neither this run nor a later one.
        while rows[above] < rows[run] - 1 or (rows[above] == rows[run] - 1 and stops[above] <= starts[run]):
            above += 1
        other = above
        while rows[other] == rows[run] - 1 and starts[other] < stops[run]:
            parent[root(other)] = root(run)
            other += 1
    return np.array([root(run) for run in range(len(rows))], dtype=np.int64)
