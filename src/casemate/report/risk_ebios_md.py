"""The EBIOS RM draft as Markdown. Text of others cannot bring markup or lines of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from casemate.report.ebios_words import Words, words
from casemate.report.text import one_line


def to_markdown(document: dict[str, Any]) -> str:
    """The draft as Markdown."""
    text = words(document["language"])
    lines = [f"# {text.title}", "", text.lead, ""]
    lines += [f"- {text.audited}: {document['audited']}", f"- {text.context}: {_plain(document['context'])}"]
    lines += [f"- {text.what_if}: {_plain(assumed)}" for assumed in document["assumed"]]
    lines += ["", f"## {text.workshops[0]}", "", *_md_1(document["workshop_1"], text)]
    for number, part in enumerate((_md_2, _md_3, _md_4, _md_5), 2):
        lines += ["", f"## {text.workshops[number - 1]}", "", *part(document[f"workshop_{number}"], text)]
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """Text of others in a table: no markup of theirs, no line of theirs."""
    cleaned = one_line(str(text))
    for char in "\\`*_[]<>|#&":
        cleaned = cleaned.replace(
            char, f"\\{char}" if char not in "<>&" else {"<": "&lt;", ">": "&gt;", "&": "&amp;"}[char]
        )
    return cleaned


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
    scope = [(_plain(row["name"]), row["kind"], _plain(row["host"])) for row in part["scope"]]
    goods = [(row["good"], row["feared_event"], _mark(row["gravity"], text)) for row in part["goods"]]
    lines = [f"### {text.scope}", "", *_table(("VM", text.kind, text.host), scope), ""]
    lines += [f"### {text.goods}", "", *_table((text.good, text.feared_event, text.gravity), goods), ""]
    lines += [f"### {text.baseline}", ""]
    for row in part["baseline"]:
        counts = ", ".join(f"{number} {status}" for status, number in row["paths"].items())
        lines.append(f"- {_plain(row['vm'])}: {counts} ({text.origins[row['from']]})")
    return lines


def _md_2(part: list[dict[str, Any]], text: Words) -> list[str]:
    rows = [
        (
            row["source"],
            row["objective"],
            "; ".join(row["scenarios"]),
            _mark(row["kept"], text),
            _plain("; ".join(row["why"])),
        )
        for row in part
    ]
    return _table((text.source, text.objective, text.scenarios, text.kept, text.why), rows)


def _md_3(part: list[dict[str, Any]], text: Words) -> list[str]:
    rows = [
        (row["title"], row["story"], ", ".join(row["starts"]), ", ".join(row["harms"]), _mark(row["gravity"], text))
        for row in part
    ]
    return _table((text.scenario, text.story, text.start, text.harm, text.gravity), rows)


def _md_4(part: list[dict[str, Any]], text: Words) -> list[str]:
    lines = []
    for row in part:
        lines.append(f"### {_plain(row['vm'])}: {row['title']}")
        known = f"{text.if_known}: {_mark(row['if_unknown_holds'], text)}"
        lines += ["", f"{text.likelihood}: {_mark(row['likelihood'], text)}; {known}"]
        lines += [f"{text.level}: {row['level']}", ""]
        for path in row["paths"]:
            settle = f" ({text.settle}: {', '.join(path['settle'])})" if path["settle"] else ""
            lines.append(f"- {path['status']}: {' → '.join(path['steps'])}{settle}")
        lines.append("")
    return lines or [text.nothing]


def _md_5(part: list[dict[str, Any]], text: Words) -> list[str]:
    lines = []
    for row in part:
        measures = [
            (item["action"], item["control"], item["title"], _plain(item["how"]), _mark(item["cost"], text), "…", "…")
            for item in row["measures"]
        ]
        header = (text.action, text.control, text.measure, text.how, text.cost, text.responsible, text.due)
        lines += [f"### {_plain(row['vm'])}", "", *_table(header, measures), "", f"#### {text.after}", ""]
        after = [(item["title"], item["before"], item["after"], _mark(item["accepted"], text)) for item in row["after"]]
        lines += [
            *_table((text.scenario, text.before, text.later, text.accepted), after),
            "",
            f"#### {text.residual}",
            "",
        ]
        for item in row["residual"]:
            held = ", ".join(item["held_by"]) or text.nothing
            reach = ", ".join(item["reaches"]) or text.nothing
            likelihood = _mark(item["likelihood"], text)
            lines.append(f"- {item['bug']}: {likelihood}; {text.held}: {held}; {text.reach}: {reach}")
        lines.append("")
    return lines
