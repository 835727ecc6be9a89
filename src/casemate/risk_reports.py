"""The public API of what a risk analysis is shown as: text, pages, JSON, SARIF, DOT, the EBIOS RM draft.

Everything below is imported on use, as in ``app.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from casemate.errors import InputError

if TYPE_CHECKING:
    from casemate.scenarios.context import Context
    from casemate.scenarios.difference import Difference
    from casemate.scenarios.placements import Comparison
    from casemate.scenarios.risk_model import RiskReport

__all__ = [
    "FORMATS",
    "document_of",
    "plain",
    "render",
    "render_comparison",
    "render_difference",
    "render_text",
]


def render_text(
    report: RiskReport,
    *,
    colour: bool = False,
    everything: bool = False,
    width: int | None = None,
    height: int | None = None,
) -> str:
    """The analysis for a terminal.

    Args:
        everything: nothing left out.
        width, height: of the screen, in columns and lines; None for no limit.
    """
    from casemate.report.risk_clean import clean
    from casemate.report.risk_text import to_text

    return to_text(clean(report), colour=colour, everything=everything, width=width, height=height)


FORMATS = ("json", "html", "dot", "sarif", "ebios-md", "ebios-html", "ebios-json")


def render(report: RiskReport, name: str, *, context: Context | None = None, language: str = "en") -> str:
    """The analysis in one of `FORMATS`; pages are best made of an analysis ``with_evidence``.

    Args:
        context: the owner's statements, as the analysis had them; the EBIOS drafts show them.
        language: ``en`` or ``fr``, for the EBIOS drafts.

    Raises:
        InputError: there is no such format or language.
    """
    import json

    if name not in FORMATS:
        raise InputError(f"there is no format {name!r}", expected=", ".join(FORMATS))
    from casemate.report.risk_clean import clean

    report = clean(report)
    if name == "json":
        return json.dumps(document_of(report), indent=1, ensure_ascii=True) + "\n"
    if name == "html":
        from casemate.report.risk_html import to_html

        return to_html(report)
    if name == "dot":
        from casemate.report.risk_dot import to_dot

        return to_dot(report)
    if name == "sarif":
        from casemate.report.risk_sarif import to_sarif

        return to_sarif(report)
    return _ebios(report, name, context, language)


def _ebios(report: RiskReport, name: str, context: Context | None, language: str) -> str:
    import json

    from casemate.report.risk_ebios import ebios_document, to_page
    from casemate.report.risk_ebios_md import to_markdown
    from casemate.scenarios.context import Context as Statements

    if language not in ("en", "fr"):
        raise InputError(f"there is no language {language!r} here", expected="en or fr")
    said = Statements() if context is None else context
    document = ebios_document(report, said, "en" if language == "en" else "fr")
    if name == "ebios-md":
        return to_markdown(document)
    return to_page(document) if name == "ebios-html" else json.dumps(document, indent=1, ensure_ascii=True) + "\n"


def render_comparison(comparison: Comparison, *, page: bool = False) -> str:
    """The four columns as text, or as one self-contained page."""
    if page:
        from casemate.installed import installed_version
        from casemate.report.risk_compare_html import compare_page

        return compare_page(comparison, installed_version())
    from casemate.report.risk_compare import compare_text

    return compare_text(comparison)


def render_difference(found: Difference) -> str:
    """The changes as text."""
    from casemate.report.risk_compare import difference_text

    return difference_text(found)


def document_of(report: RiskReport) -> dict[str, Any]:
    """The document of ``casemate risk --json``, schema ``casemate.risk/1``."""
    import msgspec

    document: dict[str, Any] = msgspec.to_builtins(report)
    return document


def plain(thing: Comparison | Difference) -> dict[str, Any]:
    """A comparison or difference as the document that ``--json`` prints."""
    import msgspec

    document: dict[str, Any] = msgspec.to_builtins(thing)
    return document
