"""The story in nouns: Ticket -> Brief -> Plan -> [Change | TestChange | Finding] -> Evidence -> Review -> Verdict ->
PullRequest -> Outcome. Frozen values; a noun that an adapter produces is defined beside it and re-exported here.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from infra.boards import Comment, Ticket
from infra.claims import Claim
from infra.errors import FactoryError
from infra.llm import Completion, Frozen, Message, ModelRequest, Tier, Usage
from infra.pull_requests import PullRequest

__all__ = [
    "Audit", "Brief", "Candidate", "Change", "CodeExcerpt", "Comment", "Completion", "Decision", "Ending", "Evidence", "Exemption", "FactoryError", "Feedback", "Finding", "Frozen", "Greenfield",
    "Job", "Message", "ModelRequest", "Outcome", "Plan", "Policy", "PullRequest", "Rejection", "Repository", "Result", "Review", "TestChange",
    "TestOutcome", "TestReport", "Threat", "Ticket", "Tier", "Usage", "Vector", "Verdict", "WorkUnit",
]  # fmt: skip

Severity = Literal["critical", "high", "medium", "low"]
TestOutcome = Literal["passed", "failed", "skipped"]
Exemption = Literal["docs", "tests"]
Decision = Literal["ACCEPT", "REVISE", "REJECT"]
Ending = Literal["done", "unchanged", "invalid", "truncated", "stuck", "limit", "declined"]
"""How a coder ended: `done` with a change, `unchanged` text, `invalid` form, answer cut off (`truncated`), the same
step again and again (`stuck`), a bound hit (`limit`), or the model said it cannot (`declined`)."""


class Hooks(Frozen):
    """Shell commands around a run, in the sandbox, without network (WS4). `timeout_seconds` bounds each of them."""

    after_create: str | None = None
    before_run: str | None = None
    after_run: str | None = None
    before_remove: str | None = None
    timeout_seconds: float = Field(default=60, gt=0)


class Policy(Frozen):
    """What a repository allows and how it is tested: front matter of its WORKFLOW.md, else detected.

    `setup` and `test` are shell commands run in the sandbox in the root of a checkout. `test_runner` says how to read
    the results. `network` opens the network for `setup` only. `protected_paths` are glob patterns no diff may touch.
    """

    setup: str | None = None
    test: str | None = None
    test_runner: Literal["pytest", "node", "exit-code"] | None = None
    network: bool = False
    timeout_seconds: float = Field(default=300, gt=0, le=86_400)
    protected_paths: tuple[str, ...] = (".git*", ".git*/**", ".github/**", ".darkfactory/**")
    hooks: Hooks = Hooks()


class Repository(Frozen):
    """The repository of one run, pinned: everything is judged against `base_sha` of the factory's own mirror."""

    name: str
    mirror: str
    remote: str
    base_branch: str
    base_sha: str


class CodeExcerpt(Frozen):
    """A piece of one file that matters for the ticket. Lines are 1-based and inclusive."""

    path: str
    start_line: int
    end_line: int
    text: str
    reason: str = ""


class TestReport(Frozen):
    """One run of a test command. `tests` maps test id to outcome; for runner `exit-code` it holds the one id `suite`."""

    __test__ = False

    command: str
    exit_code: int
    tests: dict[str, TestOutcome] = {}
    seconds: float = 0.0
    timed_out: bool = False
    output: str = ""
    """Trimmed tail for people and prompts; never the whole output."""
    reasons: dict[str, str] = {}
    """`Exception: message` of failed tests by id, of the first `tasks.evidence.MOST_REASONS`."""
    error: str | None = None
    """Why the run says nothing about the code (did not start, timed out, flooded the output), else None."""

    def ids(self, outcome: TestOutcome) -> set[str]:
        return {name for name, result in self.tests.items() if result == outcome}


class WorkUnit(Frozen):
    """A part of the plan that one coder can do alone. `files` are repository paths and are the locks of the unit."""

    id: str
    title: str
    description: str = ""
    files: tuple[str, ...] = ()
    symbols: tuple[str, ...] = ()
    """Functions and classes that it changes."""
    depends_on: tuple[str, ...] = ()


class Rejection(Frozen):
    """Why a ticket should not be coded. `proofs` were looked up by code: a commit, a line of a file, a ticket."""

    kind: Literal["already_done", "blocked_by", "unactionable"]
    reason: str
    proofs: tuple[str, ...]


class Plan(Frozen):
    """The architect's plan; every later role works from it. `effort` is 1 (trivial) to 5 (large).

    With a `rejection` there are no units and nothing is coded.
    """

    summary: str
    effort: int = Field(ge=1, le=5)
    risk: Literal["low", "medium", "high"] = "low"
    components: tuple[str, ...] = ()
    data_models: tuple[str, ...] = ()
    api_surface: tuple[str, ...] = ()
    file_layout: tuple[str, ...] = ()
    creates: tuple[str, ...] = ()
    """Paths and names that the plan makes anew."""
    edge_cases: tuple[str, ...] = ()
    acceptance: tuple[str, ...] = ()
    units: tuple[WorkUnit, ...]
    rejection: Rejection | None = None
    usage: Usage = Usage()


class Change(Frozen):
    """What one coder made of one unit. `files` maps repository path to the whole new text, or None for deleted."""

    unit: str
    candidate: int
    round: int
    ending: Ending
    files: dict[str, str | None] = {}
    explanation: str = ""
    samples: int = 0
    passed: bool = False
    """The coder's own trial run was green. A hint for choosing; never evidence."""
    usage: Usage = Usage()


class TestChange(Frozen):
    """New tests by one tester. `red` are the new tests that fail on the base commit: only those can be evidence."""

    __test__ = False

    tester: int
    files: dict[str, str] = {}
    red: tuple[str, ...] = ()
    report: TestReport | None = None
    ending: Ending = "done"
    usage: Usage = Usage()


class Brief(Frozen):
    """Everything a role may know about the ticket before work starts. `prefix` is the text all prompts begin with."""

    ticket: Ticket
    repository: Repository
    policy: Policy
    rules: str = ""
    excerpts: tuple[CodeExcerpt, ...] = ()
    suspects: tuple[str, ...] = ()
    """Qualified names of the functions most tied to the ticket, likeliest first."""
    memories: tuple[str, ...] = ()
    answers: str = ""
    """What earlier runs asked, and trusted people replied (`tasks.questions`)."""
    baseline: TestReport
    ticket_tests: TestChange | None = None
    """Tests taken word for word from the ticket's own examples (tester 0), or None when it has none."""
    nonce: str = ""
    """Marks text from outside in every prompt of this ticket."""
    prefix: str = ""
    corrections: str = ""
    """What coder and testers are told after the prefix about failures of earlier attempts; empty: nothing."""


class Finding(Frozen):
    """Something a tool or a reviewer points at. Only tool findings that are `new` (absent on base) are evidence."""

    source: str
    severity: Severity
    message: str
    path: str = ""
    line: int = 0
    rule: str = ""
    new: bool = True
    confidence: Literal["high", "medium", "low"] | None = None
    """How sure the role is that points at it; None for tools."""
    cwe: str = ""
    """`CWE-89`, where an auditor names one."""


class Evidence(Frozen):
    """Facts about one candidate commit, all measured by the runner in a fresh checkout. No opinions."""

    head_sha: str
    diff: str
    files: tuple[str, ...]
    lines_added: int
    lines_removed: int
    before: TestReport
    after: TestReport
    new_tests_before: TestReport | None = None
    new_tests_after: TestReport | None = None
    fixed: tuple[str, ...] = ()
    """Tests that fail on base and pass on the change, existing or new."""
    broken: tuple[str, ...] = ()
    """Tests that pass on base and do not pass on the change."""
    still_red: tuple[str, ...] = ()
    """New tests that fail on base and still do not pass on the change."""
    exemption: Exemption | None = None
    """The ticket asks for documentation or for tests, and the change is nothing else: no test can be red for it."""
    able_to_fail: tuple[str, ...] = ()
    """New tests that a small edit of the code turned red; measured only where the exemption `tests` is."""
    shortfall: str = ""
    """What the change lacks for the exemption that its ticket asks for."""
    findings: tuple[Finding, ...] = ()
    violations: tuple[str, ...] = ()
    """Rules the diff breaks (protected path, too large, symlink, submodule, tests removed), one sentence each."""
    seconds: float = 0.0

    @property
    def failures(self) -> tuple[str, ...]:
        """Why this evidence forbids ACCEPT, one sentence each; empty when nothing does. The judge's hard rule."""
        reasons = [*self.violations]
        if not self.files:
            reasons.append("The change is empty.")
        if self.after.error:
            reasons.append(f"The tests could not be run on the change: {self.after.error}")
        if self.broken:
            reasons.append(f"{len(self.broken)} test(s) that passed before fail now: {', '.join(self.broken[:5])}")
        if not self.fixed and self.exemption is None:
            reasons.append(f"No test fails before the change and passes after it. {self.shortfall}".rstrip())
        for finding in self.findings:
            if finding.new and finding.severity in ("critical", "high"):
                reasons.append(
                    f"New {finding.severity} finding by {finding.source}: {finding.message} ({finding.path}:{finding.line})"
                )
        return tuple(reasons)

    @property
    def proof(self) -> str:
        """What an ACCEPT stands on, as the first half of a sentence."""
        if self.fixed or self.exemption is None:
            return f"{len(self.fixed)} test(s) fail before the change and pass after it"
        if self.exemption == "docs":
            return "Only documents change, for which no test can be red"
        return f"Only tests are added; a small edit of the code turns {', '.join(self.able_to_fail[:5])} red"


class Threat(Frozen):
    """One row of the auditor's STRIDE table. `vector` says where hostile input enters."""

    category: Literal[
        "spoofing", "tampering", "repudiation", "information-disclosure", "denial-of-service", "elevation"
    ]
    vector: str
    threat: str
    severity: Severity = "low"


class Vector(Frozen):
    """One way of hostile input: where it enters, what it reaches, and what stands between (nothing: empty)."""

    source: str
    sink: str
    guard: str = ""


class Audit(Frozen):
    """A security auditor's opinion: `threats` and `vectors` of the plan, or `findings` on the diff.

    Tool findings on the diff are part of `Evidence`, not of this.
    """

    auditor: int
    threats: tuple[Threat, ...] = ()
    vectors: tuple[Vector, ...] = ()
    findings: tuple[Finding, ...] = ()
    usage: Usage = Usage()


class Candidate(Frozen):
    """One commit made of the chosen changes and the new tests. `conflicts` name files where two units disagreed."""

    number: int
    round: int = 1
    head_sha: str
    changes: tuple[Change, ...]
    tests: tuple[TestChange, ...] = ()
    conflicts: tuple[str, ...] = ()


class Review(Frozen):
    """The reviewer's opinion of one candidate. Advice with a small model; may turn ACCEPT into REVISE with a capable one."""

    summary: str = ""
    findings: tuple[Finding, ...] = ()
    usage: Usage = Usage()


class Verdict(Frozen):
    """The judge's decision. `advice` is the model's own opinion, kept apart from the rule that decided."""

    decision: Decision
    reasons: tuple[str, ...]
    must_fix: tuple[str, ...] = ()
    advice: str = ""
    decided_by: Literal["evidence", "model"] = "evidence"
    usage: Usage = Usage()


class Feedback(Frozen):
    """What a round takes from the one before: what the judge wants fixed and the best changes so far to fix it in."""

    must_fix: tuple[str, ...] = ()
    changes: tuple[Change, ...] = ()


class Result(Frozen):
    """What the rounds of a ticket came to: the best candidate and what was measured, said and decided about it."""

    candidate: Candidate
    evidence: Evidence
    review: Review
    audits: tuple[Audit, ...] = ()
    verdict: Verdict
    rounds: int
    refused: tuple[Candidate, ...] = ()
    """What the judge sent back before, oldest first."""


class Greenfield(Frozen):
    """That a whole application is built, and how large its change may grow: beyond a ticket's, but bounded."""

    max_files: int = Field(default=60, ge=1, le=300)
    max_lines: int = Field(default=6_000, ge=1, le=30_000)


class Job(Frozen):
    """A ticket taken in for work: what intake found and the attempt it opened."""

    ticket: Ticket
    repository: Repository
    attempt_id: int
    attempt: int
    model: str
    tier: Tier
    context_tokens: int
    max_rounds: int
    max_samples: int
    seed: int
    warnings: tuple[str, ...] = ()
    provider: str = ""
    """Who answers the model's calls, as pauses name it; several as `split_providers` takes them."""
    claim: Claim
    """The right to work on the ticket; every write shows it."""
    dispatched: bool = False
    """Started by the dispatcher, not by a person."""
    final: bool = True
    """A failure is the last word; else another attempt follows."""
    coder_level: Literal["strong"] | None = None
    """What was learned from earlier runs puts the coder here (`tasks.feedback`); None: the settings decide."""
    greenfield: Greenfield | None = None
    """The ticket is the specification of a whole application (`darkfactory build`)."""

    @property
    def thought(self) -> str:
        """What must be thought anew when it changes: ticket, base, attempt and seed. Part of every cache key."""
        return f"{self.ticket.revision}:{self.repository.base_sha}:{self.attempt}:{self.seed}"


class Assignment(Frozen):
    """A claimed ticket of a batch: the parameters of `work_ticket`."""

    ticket: str
    repository: str
    board: str
    token: int


class Outcome(Frozen):
    """How a run of `work_ticket` ended; what `darkfactory run --json` prints."""

    ticket: str
    decision: Decision
    reasons: tuple[str, ...]
    pull_request: PullRequest | None = None
    evidence: Evidence | None = None
    rounds: int = 0
    usage: Usage = Usage()
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()
    archive: str | None = None
    """Key in the object store of what `darkfactory build` packed; None for other tickets."""
