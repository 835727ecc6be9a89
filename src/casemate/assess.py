"""The public API, second half: what looks at machines that exist, ours or not. ``app.py`` starts and stops VMs.

Functions return plain data or report types of ``controls/audit_model.py`` and raise `CasemateError`. Everything below
is imported on use.
"""

from __future__ import annotations

__all__: list[str] = []
