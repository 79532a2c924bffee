"""Warnings that point at the user's own line, however deep in the package they arise."""

from __future__ import annotations

import sys
import warnings

OURS = frozenset({"latentgen", "torch"})  # torch: its decorators stand between our own frames


def warn_user(message: str, *, every_time: bool = False) -> None:
    """Warn at the line that called into the package.

    Args:
        message: what happened and what to do.
        every_time: Python shows the same warning of the same line once; with this, at each call. For what depends on
            the call's own data, as a prompt that is cut.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in OURS:
        frame = frame.f_back
    warnings.warn_explicit(
        message,
        UserWarning,
        frame.f_code.co_filename,
        frame.f_lineno,
        module=str(frame.f_globals.get("__name__")),
        registry=None if every_time else frame.f_globals.setdefault("__warningregistry__", {}),
    )
