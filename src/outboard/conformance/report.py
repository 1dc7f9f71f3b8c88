"""What a run found, for programs (JSON) and for people (a page in Markdown or HTML)."""

import html
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from outboard.conformance.points import Outcome, Verdict

MARKS = {Outcome.PASS: "✓", Outcome.FAIL: "✗", Outcome.NOT_APPLICABLE: "-"}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; } td, th { text-align: left; padding: .2rem .6rem; }
tr { border-bottom: 1px solid #ddd; vertical-align: top; } dt { font-weight: 600; } dd { margin: 0 0 .3rem; }
.pass { color: #17703a; } .fail { color: #b3261e; font-weight: 600; } .na { color: #777; }
"""
LONGEST_TITLE = 120
CLASSES = {Outcome.PASS: "pass", Outcome.FAIL: "fail", Outcome.NOT_APPLICABLE: "na"}


@dataclass(slots=True)
class Report:
    """The verdicts on one server or client; iterable."""

    subject: str
    verdicts: list[Verdict] = field(default_factory=list)

    def __iter__(self) -> Iterator[Verdict]:
        return iter(self.verdicts)

    def __len__(self) -> int:
        return len(self.verdicts)

    @property
    def ok(self) -> bool:
        """Whether no point failed, and at least one was judged."""
        counts = Counter(verdict.outcome for verdict in self)
        return not counts[Outcome.FAIL] and counts[Outcome.PASS] > 0

    @property
    def failures(self) -> list[Verdict]:
        """The points that do not hold."""
        return [verdict for verdict in self if verdict.outcome is Outcome.FAIL]

    def __getitem__(self, id: str) -> Verdict:
        """The verdict on one point. Raises KeyError."""
        for verdict in self:
            if verdict.point.id == id:
                return verdict
        raise KeyError(id)

    def summary(self) -> str:
        """The counts in one sentence."""
        counts = Counter(verdict.outcome for verdict in self)
        return (
            f"{self.subject}: {counts[Outcome.PASS]} points hold, {counts[Outcome.FAIL]} fail,"
            f" {counts[Outcome.NOT_APPLICABLE]} are not applicable"
        )

    def groups(self) -> Iterator[tuple[str, list[Verdict]]]:
        """The verdicts by subject, in order."""
        titles = dict.fromkeys(verdict.point.group for verdict in self)
        for title in titles:
            yield title, [verdict for verdict in self if verdict.point.group == title]

    def to_json(self) -> str:
        """One object: ``subject``, ``ok``, ``counts``, and ``points`` with all that is known of each."""
        counts = Counter(verdict.outcome for verdict in self)
        points = [
            {
                "id": verdict.point.id,
                "group": verdict.point.group,
                "title": verdict.point.title,
                "outcome": verdict.outcome,
                "profiles": list(verdict.point.profiles),
                "source": verdict.point.source,
                "matters": verdict.point.matters,
                "expected": verdict.expected,
                "saw": verdict.saw,
                "reason": verdict.reason,
            }
            for verdict in self
        ]
        totals = {outcome.value: counts[outcome] for outcome in Outcome}
        found = {"subject": self.subject, "ok": self.ok, "counts": totals, "points": points}
        return json.dumps(found, indent=2)

    def to_markdown(self) -> str:
        """A page: the failures in full, then every point."""
        lines = [f"# {self.subject}", "", self.summary() + ".", ""]
        for verdict in self.failures:
            lines += [f"## {verdict.point.id}: {verdict.point.title}", ""]
            lines += [f"- **{label}**: {text}" for label, text in verdict.explanation()] + [""]
        for title, verdicts in self.groups():
            lines += [f"## {title}", "", "| point | | what holds | |", "|---|---|---|---|"]
            for verdict in verdicts:
                note = verdict.reason.replace("|", "\\|")
                lines.append(
                    f"| {verdict.point.id} | {MARKS[verdict.outcome]} | {verdict.point.title} | {note} |"
                )
            lines.append("")
        return "\n".join(lines)

    def to_html(self) -> str:
        """The same page, whole by itself."""
        title = html.escape(self.subject)
        body = [f"<h1>{title}</h1><p>{html.escape(self.summary())}.</p>"]
        for verdict in self.failures:
            point = verdict.point
            body.append(f"<h2 id='{point.id}'>{point.id}: {html.escape(point.title)}</h2><dl>")
            body += [f"<dt>{label}</dt><dd>{html.escape(text)}</dd>" for label, text in verdict.explanation()]
            body.append("</dl>")
        for group, verdicts in self.groups():
            body.append(f"<h2>{html.escape(group)}</h2><table>{_rows(verdicts)}</table>")
        return (
            f"<!doctype html><html lang='en'><head><meta charset='utf-8'>"
            f"<meta name='viewport' content='width=device-width'><title>{title}</title>"
            f"<style>{STYLE}</style></head><body>{''.join(body)}</body></html>\n"
        )


def subject(command: str | None, path: str | os.PathLike[str]) -> str:
    """What a report is about: the command, where one was given that a title can hold, or the socket."""
    return command if command is not None and len(command) <= LONGEST_TITLE else os.fspath(path)


def _rows(verdicts: Sequence[Verdict]) -> str:
    return "".join(
        f"<tr><td>{verdict.point.id}</td><td class='{CLASSES[verdict.outcome]}'>{verdict.outcome}</td>"
        f"<td>{html.escape(verdict.point.title)}</td><td>{html.escape(verdict.reason)}</td></tr>"
        for verdict in verdicts
    )
