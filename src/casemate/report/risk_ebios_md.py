"""The EBIOS RM draft as Markdown. Text of others cannot bring markup or lines of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from casemate.report.ebios_words import Words, words
from casemate.report.text import one_line


def to_markdown(document: dict[str, Any]) -> str:
    """The draft as Markdown."""
    text = words(document["language"])
    lines = [f"# {text.title}", "", text.lead, ""]
    lines += [f"- {text.audited}{text.colon}{_plain(document['audited'])}"]
    lines += [f"- {text.context}{text.colon}{_plain(document['context'])}"]
    lines += [f"- {text.what_if}{text.colon}{_plain(assumed)}" for assumed in document["assumed"]]
    lines += ["", f"## {text.workshops[0]}", "", *_md_1(document["workshop_1"], text)]
    parts: tuple[Callable[[Any, Words], list[str]], ...] = (_md_2, _md_3, _md_4, _md_5)
    for number, part in enumerate(parts, 2):
        lines += ["", f"## {text.workshops[number - 1]}", "", *part(document[f"workshop_{number}"], text)]
    return "\n".join(lines) + "\n"


_ESCAPES: Final = {ord(char): f"\\{char}" for char in "\\`*_[]|#"} | {
    ord("<"): "&lt;",
    ord(">"): "&gt;",
    ord("&"): "&amp;",
}
_NO_BREAK: Final = "\u00a0"
"""Our own before a colon in French; what others write with it stays one line as well."""


def _plain(text: str) -> str:
    """Text of others in a table: no markup of theirs, no line of theirs."""
    return _NO_BREAK.join(map(one_line, str(text).split(_NO_BREAK))).translate(_ESCAPES)


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    return [
        f"| {' | '.join(header)} |",
        f"|{'---|' * len(header)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def _mark(said: dict[str, Any], text: Words) -> str:
    """A value with where it comes from: the reader must see which ones are his to check."""
    value = said["value"]
    shown = text.yes_no[not value] if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else value
    return f"{_plain(shown) or '…'} ({text.origins[said['from']]})"


def _md_1(part: dict[str, Any], text: Words) -> list[str]:
    evidence = text.origins
    scope = [(_plain(row["name"]), row["kind"], _plain(row["host"]), evidence[row["from"]]) for row in part["scope"]]
    values = [(_plain(row["value"]), row["feared_event"], _mark(row["gravity"], text)) for row in part["values"]]
    assets = [
        (_plain(row["asset"]), ", ".join(row["carries"]), evidence[row["from"]], _mark(row["owner"], text))
        for row in part["assets"]
    ]
    lines = [f"### {text.scope}", "", *_table(("VM", text.kind, text.host, text.origin), scope), ""]
    lines += [f"### {text.values}", "", *_table((text.value, text.feared_event, text.gravity), values), ""]
    header = (text.asset, text.carries, text.origin, text.responsible)
    lines += [f"### {text.assets}", "", *_table(header, assets), ""]
    lines += [f"### {text.baseline}", "", _mark(part["references"], text), ""]
    for row in part["baseline"]:
        lines.append(f"- {_plain(row['vm'])} ({evidence[row['from']]})")
        for title, numbers in ((text.paths, row["paths"]), (text.controls, row["controls"])):
            counts = ", ".join(f"{word}{text.colon}{number}" for word, number in numbers.items())
            lines.append(f"  - {title}{text.colon}{counts}")
        lines.append(f"  - {text.gaps}{text.colon}{', '.join(row['gaps']) or text.nothing}")
    return lines


def _md_2(part: list[dict[str, Any]], text: Words) -> list[str]:
    rows = [
        (
            row["source"],
            row["objective"],
            text.semicolon.join(row["scenarios"]),
            _mark(row["relevance"], text),
            _mark(row["kept"], text),
            _plain(text.semicolon.join(row["why"])),
        )
        for row in part
    ]
    return _table((text.source, text.objective, text.scenarios, text.relevance, text.kept, text.why), rows)


def _md_3(part: dict[str, Any], text: Words) -> list[str]:
    people = [
        (
            row["stakeholder"],
            text.semicolon.join(row["scenarios"]) or text.nothing,
            _mark(row["trusted"], text),
            _plain(row["why"]),
            _mark(row["threat"], text),
        )
        for row in part["stakeholders"]
    ]
    rows = [
        (row["title"], row["story"], ", ".join(row["starts"]), ", ".join(row["harms"]), _mark(row["gravity"], text))
        for row in part["scenarios"]
    ]
    header = (text.stakeholder, text.scenarios, text.trusted, text.why, text.threat)
    lines = [f"### {text.stakeholders}", "", *_table(header, people), "", f"### {text.strategic}", ""]
    return lines + _table((text.scenario, text.story, text.start, text.harm, text.gravity), rows)


def _md_4(part: list[dict[str, Any]], text: Words) -> list[str]:
    lines = [text.about_likelihood, ""]
    for row in part:
        lines.append(f"### {_plain(row['vm'])}{text.colon}{row['title']}")
        known = f"{text.if_known}{text.colon}{_mark(row['if_unknown_holds'], text)}"
        lines += ["", f"- {text.likelihood}{text.colon}{_mark(row['likelihood'], text)}", f"- {known}"]
        lines += [f"- {text.level}{text.colon}{_mark(row['level'], text)}", f"- {text.path}{text.colon}".rstrip()]
        for path in row["paths"]:
            settle = f" ({text.settle}{text.colon}{', '.join(path['settle'])})" if path["settle"] else ""
            origin = text.origins[path["from"]]
            lines.append(f"  - {path['status']} ({origin}){text.colon}{' → '.join(path['steps'])}{settle}")
        lines.append("")
    return lines if part else [text.nothing]


def _md_5(part: list[dict[str, Any]], text: Words) -> list[str]:
    lines = [text.about_remedies, ""] if text.about_remedies else []
    for row in part:
        measures = [
            (
                item["action"],
                item["control"],
                _plain(item["title"]),
                _plain(item["how"]),
                *(_mark(item[name], text) for name in ("cost", "owner", "due")),
            )
            for item in row["measures"]
        ]
        header = (text.action, text.control, text.measure, text.how, text.cost, text.responsible, text.due)
        lines += [f"### {_plain(row['vm'])}", "", *_table(header, measures), "", f"#### {text.after}", ""]
        after = [
            (item["title"], *(_mark(item[name], text) for name in ("before", "after", "accepted")))
            for item in row["after"]
        ]
        lines += _table((text.scenario, text.before, text.later, text.accepted), after)
        lines += ["", f"#### {text.residual}", ""]
        for item in row["residual"]:
            held = ", ".join(item["held_by"]) or text.nothing
            reach = ", ".join(item["reaches"]) or text.nothing
            parts = (
                f"{text.likelihood.lower()}{text.colon}{_mark(item['likelihood'], text)}",
                f"{text.held}{text.colon}{held} ({text.origins[item['from']]})",
                f"{text.reach}{text.colon}{reach}",
            )
            lines += [f"- {item['bug']}", *(f"  - {line}" for line in parts)]
        lines.append("")
    return lines
