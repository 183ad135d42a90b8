"""The verification protocol: what a model says that people must change outside of the repository (an environment variable,
a secret, DNS, a CI setting, an account) is not passed on because it was said (T14).

Such a claim is refused without a line of the base commit that shows it. With one it goes to the strong model, together
with what memory knows; where there is none, it stays unverified. Only a confirmed claim reaches findings and pull requests.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import Literal

from pydantic import BaseModel, Field

from infra.errors import InvalidOutput
from infra.git import Mirror
from tasks import paper, services
from tasks.answers import parse
from tasks.asking import Asker, ask, chat
from tasks.context import SYSTEM, fenced
from tasks.models import Brief, Change, Finding, Frozen, Job, ModelRequest

PROMPT_VERSION = "verifier-1"
MAX_CLAIMS = 5
"""Of one text; further ones are refused unread."""
MAX_PLACES = 5
PIECE_CHARS = 1_000
NEAR_LINES = 2
"""A quoted line may be off by so many."""

INSTRUCTION = """\
Somebody who works on the ticket says that people must change something outside of the repository:
{claim}
The lines that are named as evidence:
{lines}
{memories}
You are the verifier. Do these lines show that this is needed, and that no change of the repository does instead? Answer \
with one JSON object: {{"needed": true|false, "reason": one short sentence}}."""

Standing = Literal["refused", "unverified", "confirmed"]


class ConfigClaim(Frozen):
    """Something that people are told to change outside of the repository, with the places (`path:line`) that show it."""

    what: str = Field(max_length=PIECE_CHARS)
    evidence: tuple[str, ...] = Field(default=(), max_length=20)


class Ruling(Frozen):
    """What came of a claim. `unverified`: a line shows it, and there is no strong model that could confirm it."""

    claim: ConfigClaim
    standing: Standing
    reason: str


class Opinion(BaseModel):
    needed: bool
    reason: str = Field(default="", max_length=400)


# --- finding claims ---------------------------------------------------------------------------------------------------

_OUTSIDE = re.compile(
    r"""(?ix) \b(?: env(?:ironment)?[ -]?var(?:iable)?s? | \.env | api[ -]?keys? | access[ -](?:keys?|tokens?)
    | personal[ ]access[ ]tokens? | service[ ]accounts? | credentials? | client[ ]secrets? | licen[cs]e[ ]keys?
    | (?:deploy|signing|ssh|encryption)[ ]keys? | secrets?[ ]manager | vault
    | (?:repo(?:sitory)?|organi[sz]ation|actions|ci|github|gitlab|pipeline|deployment|production|staging|kubernetes|project)
      [ ](?:secrets?|variables?|settings?|config(?:uration)?|environment)
    | dns | cname | (?:mx|txt|a|srv)[ ]records? | name[ ]?servers? | registrar | (?:tls|ssl)[ ]certificates?
    | branch[ ]protection | required[ ](?:status[ ])?checks? | iam | security[ ]groups? | firewall | vpc | load[ ]balancer
    | s3[ ]bucket | bucket[ ]policy | (?:cloud|admin|management)[ ](?:console|panel|portal) | dashboard | control[ ]panel
    | billing | subscription | paid[ ]plan | quotas? | oauth[ ](?:app\w*|clients?|scopes?|consent\w*) | redirect[ ]ur[il]s?
    | callback[ ]urls? | sso | cron(?:tab|[ ]?jobs?) | private[ ]registry | systemd[ ]unit | reverse[ ]proxy | nginx | cdn | runners?[ ]group
    ) (?![ ](?:lookup|pars|read|support|fallback|default|handl|check|valid|name|prefix|expan|loader|class|test)\w*) \b"""
)
_NAMED_OUTSIDE = re.compile(
    r"(?i)\b(?:secrets?|tokens?|permissions?|scopes?|accounts?|domains?|webhooks?|certificates?|feature flags?|roles?"
    r"|extensions?|settings?|servers?|instances?|plans?|keys?|mailbox|topics?|queues?|buckets?|apps?|plugins?|integrations?"
    r"|licen[cs]es?|access|config|address(?:es)?|ports?|limits?)\b|(?-i:\b[A-Z][A-Z0-9_]{4,}\b)"
)
_SERVICE = (
    r"(?:aws|gcp|google cloud|azure|stripe|twilio|sendgrid|auth0|okta|heroku|vercel|netlify|cloudflare|datadog|sentry"
    r"|pagerduty|slack|jira|firebase|supabase|circleci|jenkins|travis|github|gitlab|docker hub|npm|pypi|launchdarkly|kafka)"
)
_ELSEWHERE = re.compile(
    rf"(?i)\b{_SERVICE}\b|\b(?:in|on|for|of|to) (?:the |your |our )?(?:production|staging|prod|ci|console|environment|deployment|host|server"
    r"|cluster|pipeline|settings page)\b|\b(?:in|to) (?:the )?\w+ (?:config|settings|console)\b"
)
_PEOPLE = re.compile(
    r"(?i)\b(?:you|your|someone|somebody|people|an? human|admin\w*|operators?|ops|devops|sre|maintainers?|owners?|the team"
    r"|whoever|customer|on-call|the organi[sz]ation)\b"
)
_ACTION = (
    r"(?:set|mak|accept|copy|lift|add|creat|configur|enabl|disabl|updat|chang|rotat|grant|regist|install|point|export|defin|provision|rais"
    r"|increas|upgrad|request|generat|invit|giv|whitelist|allow|open|renew|turn|switch|stor|put|provid|restart|buy|extend"
    r"|revok|re-?issu|verif|approv|connect|link|adjust|edit|fix|modif|migrat|suppl|populat|replac|reset|expos|bump)\w*"
)
_OF_PEOPLE = re.compile(
    r"(?i)\b(?:admin\w*|operators?|ops|devops|maintainers?|owners?|the team|somebody|someone|an? human|customer)\b[^.,;]{0,40}?"
    rf"\b(?:must|has to|have to|needs? to|should)\b[^.,;]{{0,20}}?\b{_ACTION}\b"
    rf"|\b{_ACTION}\b.*\b(?:in|with|at|on) (?:the |your )?{_SERVICE}\b|\b{_SERVICE}\b.*\bby (?:hand|an? (?:admin\w*|owner))\b"
)
_DEMAND = re.compile(
    rf"(?i)\b(?:must|needs?|needed|has to|have to|should|shall|required?|requires|make sure|ensure|remember to|forget to|please"
    rf"|ask|(?:can|could|would|will) (?:you|someone|somebody)|necessary|until|unless|only works? (?:if|when|once)|before (?:deploy|merg|releas)\w*)\b.*\b{_ACTION}\b"
    rf"|\b{_ACTION}\b.*\b(?:must|needed|required|first|before (?:deploy|merg|releas)\w*|for this to work|manually|by hand)\b"
    rf"|(?:^|, (?:so )?|[:;] |then |and )(?:please |also |then |first,? |finally,? |- )*(?:{_ACTION})\b"
    r"|\b(?:is|are)(?: not|n't) (?:set|configured|installed|connected|approved|enabled|granted|defined|registered|verified)\b"
    r"|\bis (?:missing|expired|unset|disabled)\b"
    r"|\b(?:lacks?|needs?|requires?|must have)\b"
)
_ABOUT_CODE = re.compile(
    r"(?i)\b(?:functions?|methods?|class|constructor|parser|code|module|loop|decorator|helper|tests?|fixtures?|mocks?|callers?"
    r"|handlers?|client|loader|validator|query|serializer|change|fix|patch|we|it|this)\b[^.,;]{0,40}?"
    r"\b(?:must|should|needs? to|has to|have to) (?!be (?:set|configured|added|created))"
    r"|\b(?:in|to|of|from|inside) `?[\w./-]+\.(?:py|js|mjs|ts|tsx|go|md)\b(?!:\d)"
    r"|^(?:the )?(?:new |added |existing )?(?:tests?|fixtures?|mocks?)\b|^`[\w.]+(?:\(\))?` (?:must|should|needs)"
)
_PLACE = re.compile(r"(?<![\w/:.@+-])([\w.@+-]+(?:/[\w.@+-]+)*):(\d{1,7})\b")


def claims_in(text: str) -> list[ConfigClaim]:
    """The sentences of `text` that tell people to change something outside of the repository.

    Each comes with every place that the text names; which of them shows it is looked up later.
    """
    places = tuple(dict.fromkeys(f"{path}:{line}" for path, line in _PLACE.findall(text)))[:20]
    return [ConfigClaim(what=sentence, evidence=places) for sentence in _sentences(text) if is_claim(sentence)]


def is_claim(sentence: str) -> bool:
    """Whether one sentence tells people to change something outside of the repository."""
    if not _DEMAND.search(sentence) or _ABOUT_CODE.search(sentence):
        return False
    if _OUTSIDE.search(sentence) or _OF_PEOPLE.search(sentence):
        return True
    somewhere = _ELSEWHERE.search(sentence) or _PEOPLE.search(sentence)
    return bool(somewhere and _NAMED_OUTSIDE.search(sentence))


def _sentences(text: str) -> list[str]:
    """Sentences and lines; very long ones in pieces, because matching takes the square of a piece's length."""
    parts = [part.strip() for part in re.split(r"(?<=[.!?])\s+|\n+", text)]
    return [piece for part in parts for piece in re.findall(rf".{{1,{PIECE_CHARS}}}", part)]


# --- judging claims ---------------------------------------------------------------------------------------------------


def shown_by(mirror: Mirror, sha: str, claim: ConfigClaim) -> dict[str, str]:
    """The places of a claim that exist in the commit and really hold what it names: `path:line` -> the lines there."""
    named = _named_in(claim.what)
    found: dict[str, str] = {}
    for place in list(dict.fromkeys(claim.evidence))[:MAX_PLACES]:
        match = _PLACE.fullmatch(place.strip().strip("`").removeprefix("./"))
        raw = mirror.read_all(sha, [match[1]]).get(match[1]) if match else None
        lines = raw.decode(errors="replace").split("\n") if raw is not None else []
        if match and 1 <= int(match[2]) <= len(lines):
            near = "\n".join(lines[max(int(match[2]) - 1 - NEAR_LINES, 0) : int(match[2]) + NEAR_LINES])
            if any(name.casefold() in near.casefold() for name in named):
                found[place] = near
    return found


def _named_in(text: str) -> list[str]:
    """What a place has to show: names and quotations of the claim, else what it wants changed."""
    plain = _PLACE.sub(" ", text)
    quoted = re.findall(r"`([^`]{2,80})`|\"([^\"]{2,80})\"|\b([A-Z][A-Z0-9]*_[A-Z0-9_]+)\b|\b(\w+(?:\.\w+)+)\b", plain)
    names = [name for names in quoted for name in names if name]
    return names or [found for found in _OUTSIDE.findall(plain) if len(found) > 2]


async def rule(job: Job, brief: Brief, claims: Iterable[ConfigClaim], asker: Asker) -> tuple[Ruling, ...]:
    """What comes of each claim. `asker` is the role that made them. Asks the strong model once per claim with evidence."""
    mirror, sha = services.mirror(brief.repository), brief.repository.base_sha
    rulings: list[Ruling] = []
    for number, claim in enumerate(dict.fromkeys(claims), 1):
        lines = shown_by(mirror, sha, claim) if number <= MAX_CLAIMS else {}
        if not lines:
            reason = "no line of the base commit that it names shows it"
            rulings.append(Ruling(claim=claim, standing="refused", reason=reason))
        elif not services.has_strong():
            reason = f"{', '.join(lines)} may show it; there is no strong model that could confirm it"
            rulings.append(Ruling(claim=claim, standing="unverified", reason=reason))
        else:
            rulings.append(await _confirmed(job, brief, claim, lines, asker, number))
    return tuple(rulings)


async def _confirmed(
    job: Job, brief: Brief, claim: ConfigClaim, lines: dict[str, str], asker: Asker, number: int
) -> Ruling:
    """The strong model's ruling; an answer that cannot be used confirms nothing."""
    known = _remembered(brief.memories, claim)
    instruction = INSTRUCTION.format(
        claim=fenced(claim.what, brief.nonce),
        lines=fenced("\n\n".join(f"{place}\n{text}" for place, text in lines.items()), brief.nonce),
        memories=f"What earlier work knows about it:\n{fenced(known, brief.nonce)}" if known else "",
    )
    request = ModelRequest(
        messages=chat(brief.prefix, SYSTEM, instruction), max_tokens=400, seed=job.seed,
        json_schema=Opinion.model_json_schema(),
    )  # fmt: skip
    who = asker.model_copy(update={"role": "verifier", "prompt_version": PROMPT_VERSION, "sample": number})
    opinion = parse((await ask(who, request, services.router("strong").name)).text, Opinion)
    if opinion is None:
        return Ruling(claim=claim, standing="unverified", reason="the strong model's answer could not be used")
    return Ruling(claim=claim, standing="confirmed" if opinion.needed else "refused", reason=opinion.reason)


def _remembered(memories: Iterable[str], claim: ConfigClaim) -> str:
    """The recalled lessons that are about something the claim names."""
    named = [name.casefold() for name in _named_in(claim.what)]
    return "\n".join(memory for memory in memories if any(name in memory.casefold() for name in named))


# --- where claims come in ---------------------------------------------------------------------------------------------


async def verified_text(job: Job, brief: Brief, asker: Asker, text: str, claims: tuple[ConfigClaim, ...] = ()) -> str:
    """`text` without the sentences whose claims were not confirmed. Confirmed `claims` made beside it are added."""
    rulings = await _ruled(job, brief, asker, (*claims_in(text), *claims))
    dropped = [r.claim.what for r in rulings if r.standing != "confirmed"]
    confirmed = {r.claim.what for r in rulings if r.standing == "confirmed"}
    kept = text
    for sentence in dropped:
        kept = kept.replace(sentence, "")
    added = [f"{c.what} ({', '.join(c.evidence)})" for c in claims if c.what in confirmed and c.what not in text]
    return " ".join([*kept.split(), *added]) if rulings else text


async def verified_change(
    job: Job, brief: Brief, asker: Asker, change: Change, claims: tuple[ConfigClaim, ...] = ()
) -> Change:
    """The change with only verified words in the coder's explanation."""
    said = await verified_text(job, brief, asker, change.explanation, claims)
    return change.model_copy(update={"explanation": said})


async def verified_findings(job: Job, brief: Brief, asker: Asker, findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """The findings without those that tell people to change something outside and were not confirmed.

    A finding's own place counts as evidence, too.
    """
    made = {n: _claims_of(finding) for n, finding in enumerate(findings)}
    rulings = await _ruled(job, brief, asker, (claim for claims in made.values() for claim in claims))
    open_claims = {r.claim for r in rulings if r.standing != "confirmed"}
    return tuple(finding for n, finding in enumerate(findings) if open_claims.isdisjoint(made[n]))


def _claims_of(finding: Finding) -> list[ConfigClaim]:
    own = (f"{finding.path}:{finding.line}",) if finding.path else ()
    return [c.model_copy(update={"evidence": (*own, *c.evidence)[:20]}) for c in claims_in(finding.message)]


async def vetted_question(job: Job, brief: Brief, asker: Asker, question: str) -> str:
    """A question for people as it may be asked: a claim in it that stays unverified is marked as one.

    Raises InvalidOutput, which the model is told, when a claim in it is refused.
    """
    rulings = await _ruled(job, brief, asker, claims_in(question))
    for ruling in rulings:
        if ruling.standing == "refused":
            raise InvalidOutput(
                f"people are not asked to change something outside of the repository because of {ruling.claim.what!r}: "
                f"{ruling.reason}. Name the lines of the repository that show it (path:line), or do the ticket without it"
            )
    marks = [f"Unverified claim: {r.reason}." for r in rulings if r.standing == "unverified"]
    return "\n\n".join([question, *marks])


async def _ruled(job: Job, brief: Brief, asker: Asker, claims: Iterable[ConfigClaim]) -> tuple[Ruling, ...]:
    """The rulings on what a role claims, left as a sheet."""
    made = list(claims)
    if not made:
        return ()
    rulings = await rule(job, brief, made, asker)
    sheet = "\n".join(_as_markdown(rulings))
    said = hashlib.sha256(sheet.encode()).hexdigest()[:8]
    await paper.leave(job, f"claims-{asker.role}-{asker.candidate}-{asker.round}-{said}", sheet)
    return rulings


def _as_markdown(rulings: tuple[Ruling, ...]) -> Iterator[str]:
    yield "What was said that people must change outside of the repository:"
    for ruling in rulings:
        title = "confirmed" if ruling.standing == "confirmed" else f"unverified claim ({ruling.standing})"
        yield f"- **{title}**: {' '.join(ruling.claim.what.split())} - {ruling.reason}"
