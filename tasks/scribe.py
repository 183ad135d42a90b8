"""The scribe: the pull request's text. Everything in it was measured or is marked as a model's words.

A capable model may find title, summary and a line for the changelog. Its words are data: what claims more than a diff can
show, names files that did not change or carries marks of its own is left out, and the rule's words stand instead.
"""

from __future__ import annotations

import re

from prefect import task
from pydantic import BaseModel, Field

from infra.redaction import redact
from tasks import paper
from tasks.answers import ask_for
from tasks.asking import asker_for, chat
from tasks.context import SYSTEM, fenced
from tasks.delivery import Costs, cost_table
from tasks.measuring import DIFF_CHARS, facts
from tasks.models import Audit, Brief, Evidence, Frozen, Job, ModelRequest, Plan, Result, Review, TestReport
from tasks.paper import Signature
from tasks.seats import seat
from tasks.verification import verified_text

PROMPT_VERSION = "scribe-1"

INSTRUCTION = """\
This change was made for the ticket and accepted:
{diff}

What the factory measured: {facts}

You are the scribe. Find the words of the pull request, for a reader who knows the code: what was wrong and what changes. \
Say only what the diff shows. Say nothing of tests, safety or quality: the factory adds what it measured. Plain sentences, \
no links, no mentions, no markup. Answer with one JSON object: {{"title": imperative, at most {title} characters, \
"summary": two to four sentences, "changelog": one sentence for the users of the software}}."""

TITLE_CHARS = 80
SUMMARY_CHARS = 900
CHANGELOG_CHARS = 200
CLAIMS = re.compile(
    r"\b(tests?|tested|verif\w+|prov(e[nsd]?|ing)|guarante\w+|ensur\w+|secur\w+|safe\w*|robust\w*|production.ready|"
    r"backwards?.compatib\w+|no (regressions?|side.effects?|breaking)|all (inputs|cases)|always|never|fully|complete(ly)?|"
    r"approved|reviewed|merge[ds]?)\b",
    re.IGNORECASE,
)
"""Words for what only evidence can say."""
MARKS = re.compile(r"[@#<>\[\]`*|\\]|://|[\x00-\x1f\x7f\u200b-\u200f\u2028-\u202e\u2066-\u2069]")
_FILE = re.compile(r"\b[\w.-]+(?:/[\w.-]+)+|\b[\w-]+\.(?:py|js|mjs|cjs|jsx|ts|tsx|go|toml|ya?ml|json|md|txt|cfg|ini)\b")


class DraftWords(BaseModel):
    """What a capable model is asked for."""

    title: str = ""
    summary: str = ""
    changelog: str = ""


class Words(Frozen):
    """Words of a model that passed `checked`; an empty one is replaced by the rule's."""

    title: str = Field(default="", max_length=TITLE_CHARS)
    summary: str = Field(default="", max_length=SUMMARY_CHARS)
    changelog: str = Field(default="", max_length=CHANGELOG_CHARS)


class PullRequestText(Frozen):
    """Title (one line) and body (Markdown) of a pull request."""

    title: str
    body: str


@task(name="scribe", task_run_name="scribe")
async def find_words(job: Job, brief: Brief, plan: Plan, result: Result) -> Words:
    """A capable model's words for an accepted change, checked. An unusable answer is no words at all."""
    at = seat(job, "scribe", plan.effort)
    asker = asker_for(job, "scribe", PROMPT_VERSION, effort=plan.effort)
    instruction = INSTRUCTION.format(
        diff=fenced(result.evidence.diff[:DIFF_CHARS], brief.nonce), facts=facts(result.evidence), title=TITLE_CHARS
    )
    request = ModelRequest(messages=chat(brief.prefix, SYSTEM, instruction), max_tokens=800, seed=job.seed)
    draft, usage = await ask_for(DraftWords, asker, request, at.model)
    words = checked(draft or DraftWords(), result.evidence)
    words = words.model_copy(update={"summary": await verified_text(job, brief, asker, words.summary)})
    kept = sum(map(bool, (words.title, words.summary, words.changelog)))
    signed = Signature(role="scribe", model=at.model, prompt_version=PROMPT_VERSION, usage=usage,
                       status="success" if kept == 3 else "partial" if kept else "fail")  # fmt: skip
    await paper.leave_sheet(job, "words", signed, f"{kept} of 3 were fit to use.\n\n{_shown(words)}", words)
    return words


def checked(draft: DraftWords, evidence: Evidence) -> Words:
    """The draft without what is too long, not one line, marked up, or says more than the diff can show."""
    return Words(
        title=_fit(draft.title.rstrip(". "), TITLE_CHARS, evidence),
        summary=_fit(draft.summary, SUMMARY_CHARS, evidence),
        changelog=_fit(draft.changelog, CHANGELOG_CHARS, evidence),
    )


def _fit(said: str, longest: int, evidence: Evidence) -> str:
    line = " ".join(said.split())
    strange = {
        name for name in _FILE.findall(line) if not any(f"/{path}".endswith(f"/{name}") for path in evidence.files)
    }
    fits = len(line) <= longest and not MARKS.search(line) and not CLAIMS.search(line) and not strange
    return line if fits else ""


def _shown(words: Words) -> str:
    named = {"Title": words.title, "Summary": words.summary, "Changelog": words.changelog}
    return "\n".join(f"- {name}: {quoted(text) or '(by rule)'}" for name, text in named.items())


@task(name="pull request's text", task_run_name="pull request's text")
async def write_up(job: Job, plan: Plan, result: Result, costs: Costs, words: Words) -> PullRequestText:
    """The pull request's text: the scribe's words where there are some, and by rule what was measured."""
    body = pull_request_body(job, plan, result, costs, words)
    await paper.leave(job, "pull-request", body)
    return PullRequestText(title=redact(pull_request_title(job, words)), body=redact(body))


def pull_request_title(job: Job, words: Words) -> str:
    """`<ticket key>: <the scribe's title, else the ticket's>`, one line, at most 120 characters."""
    return f"{job.ticket.key}: {words.title or ' '.join(job.ticket.title.split())}"[:120]


def pull_request_body(job: Job, plan: Plan, result: Result, costs: Costs, words: Words) -> str:
    """Markdown: what changed and why, diff stat, evidence table, findings, verdict, cost."""
    evidence, verdict = result.evidence, result.verdict
    explained = [f"- {quoted(c.explanation)}" for c in result.candidate.changes if c.explanation]
    base = f"`{job.repository.base_branch}` at `{job.repository.base_sha[:12]}`"
    return "\n".join(
        [
            f"Ticket: {job.ticket.url or job.ticket.key}. Base: {base}.",
            "",
            quoted(words.summary or plan.summary),
            *(["", "What was changed, in the coder's words:", *explained] if explained else []),
            *(["", "## Changelog", quoted(words.changelog)] if words.changelog else []),
            "",
            "## Diff",
            f"{len(evidence.files)} file(s), +{evidence.lines_added} -{evidence.lines_removed}",
            *(f"- {code(path)}" for path in evidence.files),
            "",
            "## Evidence",
            *_evidence_table(evidence),
            "",
            "## Findings",
            *_findings(evidence, result.review, result.audits),
            "",
            "## Verdict",
            f"**{verdict.decision}** in round {result.rounds}, decided by {verdict.decided_by}.",
            *(f"- {quoted(reason)}" for reason in verdict.reasons),
            f"- The model's advice: {quoted(verdict.advice)}",
            "",
            "## Cost",
            *cost_table(costs),
        ]
    )


def quoted(text: str) -> str:
    """Words of a model, a ticket or a tool as one line of plain text: no Markdown, HTML, mention or reference survives."""
    line = re.sub(r"([\\`*_\[\]~|!])", r"\\\1", " ".join(text.split()))
    line = line.replace("<", "&lt;").replace("@", "@\u200b").replace("#", "#\u200b").replace("://", ":\u200b//")
    return re.sub(r"^([>#+-]|\d+[.)])", r"\\\1", line)


def code(text: str) -> str:
    """A test id, path or command as a code span it cannot leave."""
    return "`" + " ".join(text.split()).replace("`", "'").replace("@", "@\u200b") + "`"


def _evidence_table(evidence: Evidence) -> list[str]:
    rows = [
        "| tests | before | after |",
        "|---|---|---|",
        f"| the repository's | {_counts(evidence.before)} | {_counts(evidence.after)} |",
    ]
    if evidence.new_tests_before and evidence.new_tests_after:
        rows.append(f"| new | {_counts(evidence.new_tests_before)} | {_counts(evidence.new_tests_after)} |")
    rows += ["", f"Command: {code(evidence.after.command)}"]
    rows += [f"- fails before, passes after: {code(name)}" for name in evidence.fixed[:20]]
    rows += [f"- {quoted(evidence.proof)}."] if evidence.exemption else []
    rows += [f"- still fails (written by a model, may be wrong): {code(name)}" for name in evidence.still_red[:20]]
    return rows


def _counts(report: TestReport) -> str:
    if report.error:
        return f"not usable: {quoted(report.error)}"
    return f"{len(report.ids('passed'))} passed, {len(report.ids('failed'))} failed"


def _findings(evidence: Evidence, review: Review, audits: tuple[Audit, ...]) -> list[str]:
    tools = [f for f in evidence.findings if f.new]
    lines = [
        f"- {f.source} {f.severity}: {quoted(f.message)} ({code(f'{f.path}:{f.line}')})"
        for f in (*tools, *review.findings)
    ]
    lines += [
        f"- {f.source} {f.severity}, confidence {f.confidence}: {quoted(f.message)} ({code(f'{f.path}:{f.line}')})"
        for a in audits
        for f in a.findings
    ]
    lines += [
        f"- auditor, {t.category}: {quoted(t.threat)} (enters by {quoted(t.vector)})" for a in audits for t in a.threats
    ]
    return [
        *(lines or ["None new by the tools, none by the reviewer."]),
        *([f"Review: {quoted(review.summary)}"] if review.summary else []),
    ]
