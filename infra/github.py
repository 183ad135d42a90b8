"""The line to one GitHub repository, which its board and its forge share: requests, whole lists, comments, errors.

PyGithub sends the requests. Its objects are not used: they take a redirected write for a success, and break in as many ways
as a record can be malformed. Its connection is not made for threads, so requests take turns.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeGuard
from urllib.parse import quote, urlsplit

import requests
from github import Auth, Github

from infra.boards import Comment
from infra.boards.limits import Allowance
from infra.boards.markers import seal, unseal
from infra.boards.payloads import dig, moment, one_line
from infra.errors import (
    AuthFailed,
    BrokenPagination,
    ConfigError,
    FactoryError,
    ProviderFault,
    RateLimited,
    UnexpectedStatus,
    Unreachable,
)
from infra.etags import Etags, Kept
from infra.reset_times import from_epoch, retry_after

Payload = dict[str, Any]

TIMEOUT_SECONDS = 15
_PAGE = 100
_MOST_PAGES = 500
_LONGEST_TITLE = 256
"""GitHub refuses longer titles, and texts of more than 65 536 characters."""
_LONGEST_TEXT = 60_000
_SECONDARY_LIMIT = timedelta(minutes=1)
"""The least wait when GitHub names none and its hourly budget is not what is used up, says its documentation."""
_LIMIT = re.compile(r"rate limit|abuse detection", re.IGNORECASE)
"""Older servers call the secondary limit by the second name."""
_NEXT = re.compile(r'<([^<>]*)>\s*;\s*rel="?next"?')


class Refused(UnexpectedStatus):
    """GitHub understood and says no (422). `words` is its reason."""

    def __init__(self, message: str, words: str) -> None:
        super().__init__(message)
        self.words = words


class Missing(UnexpectedStatus):
    """Not there, deleted, or not to be seen with this token (404, 410)."""


class _Forbidden(AuthFailed):
    """403: the token is good, and may not do this."""


class GitHub:
    """Requests to the repository `project` (`owner/name`). Nothing is retried and nothing sleeps.

    What was read before is kept in the folder `answers` and only confirmed, which costs nothing of the hourly budget (TR4).
    Raises what `infra.boards.Board` names, and `Refused` and `Missing`.
    """

    def __init__(self, project: str, url: str, token: str, answers: Path | None = None) -> None:
        self.project = project
        self.token = token
        self.root = f"/repos/{project}"
        self._etags = Etags(answers) if answers else None
        self._allowance = Allowance("GitHub")
        self._url = _checked_url(url)
        self._requester = Github(
            base_url=self._url,
            auth=Auth.Token(_checked_token(token)),
            timeout=TIMEOUT_SECONDS,
            retry=None,
            seconds_between_requests=0,
            seconds_between_writes=0,
        ).requester
        self._turn = threading.Lock()
        self._login: str | None = None
        self._is_app = False

    def ask(self, method: str, path: str, payload: Payload | None = None, **query: str) -> Any:
        """The JSON value of the answer; None when it is empty."""
        return self._asked(method, path, payload, query)[1]

    def record(self, method: str, path: str, payload: Payload | None = None) -> Payload:
        """As `ask`, where the answer must be an object."""
        answer = self.ask(method, path, payload)
        if not isinstance(answer, dict):
            raise ProviderFault(f"GitHub's answer to {method} {path} is not a JSON object; check `url`")
        return answer

    def pages(self, path: str, name: str | None = None, **query: str) -> Iterator[Any]:
        """The items of a list (of the field `name` of an object), page by page as they are taken.

        Raises BrokenPagination when a later page fails; only a rate limit keeps its own error, which says when to come back.
        """
        headers, answer = self._asked("GET", path, None, {**query, "per_page": str(_PAGE)})
        yield from _items(answer, name, path)
        seen: set[str] = set()
        while target := self._next(headers, seen):
            try:
                headers, answer = self._asked("GET", target, None, {})
                items = _items(answer, name, path)
            except RateLimited:
                raise
            except FactoryError as error:
                raise BrokenPagination(f"page {len(seen) + 1} of {path} failed: {error}; read it again") from error
            yield from items

    def redirect(self, path: str) -> str:
        """Where GitHub sends those who download: an address that opens the file for a minute, to anybody."""
        asked = f"GET {path}"
        status, headers, text = self._sent("GET", path, None, {}, asked, {})
        target = headers.get("location", "")
        if status != 302:
            raise self._error(status, headers, text, asked)
        if not target.startswith(("https://", f"{self._url}/")):
            raise ProviderFault(f"GitHub sends {asked} to no usable address; check `url`")
        return target

    def check_project(self) -> Payload:
        """The repository. Raises ConfigError unless it is there under its name: else everything in it would look gone."""
        try:
            found = self.record("GET", self.root)
        except Missing as error:
            raise ConfigError(
                f"GitHub has no repository {self.project!r} that this token may see; correct `project`, or the "
                "repositories that `token` gives access to"
            ) from error
        name = one_line(found.get("full_name")) or ""
        if name.casefold() != self.project.casefold():
            raise ConfigError(f"the repository {self.project!r} is called {name!r} now; correct `project`")
        return found

    def is_ours(self, user: object) -> bool:
        """Whether the account of the token wrote it: anybody can copy a mark, which GitHub shows to whoever asks.

        The token of an app may not ask for its own name; then any app is believed, as no person can look like one.
        """
        if not self._is_app and self._login is None:
            self._login = self._own_login()
            self._is_app = self._login is None
        if self._is_app:
            return bool(dig(user, "type") == "Bot")
        return _same(dig(user, "login"), self._login)

    def _own_login(self) -> str | None:
        """None for the token of an app."""
        try:
            login = one_line(self.record("GET", "/user").get("login"))
        except (_Forbidden, Missing):
            return None
        if login is None:
            raise ProviderFault("GitHub does not say whose token it is; try again later")
        return login

    def harmless(self, value: object) -> str:
        """Foreign words for a message: short, printable and without the token."""
        return (one_line(str(value).replace(self.token, "***")) or "no reason given")[:300]

    def _asked(
        self, method: str, target: str, payload: Payload | None, query: dict[str, str]
    ) -> tuple[dict[str, str], Any]:
        asked = f"{method} {urlsplit(target).path}"
        place = "\0".join(
            (self._url, self.token, target, *(f"{name}={value}" for name, value in sorted(query.items())))
        )
        etags = self._etags if method == "GET" else None
        kept = etags.get(place) if etags else None
        known = {"If-None-Match": kept.etag} if kept else {}
        status, headers, text = self._sent(method, target, payload, query, asked, known)
        if status == 304 and kept:
            return {"link": kept.link}, _parsed(kept.text, asked)
        if not 200 <= status < 300:
            raise self._error(status, headers, text, asked)
        answer = _parsed(text, asked)
        if etags and "etag" in headers and not _may_grow(answer, headers):
            etags.put(place, Kept(etag=headers["etag"], link=headers.get("link", ""), text=text))
        return headers, answer

    def _sent(
        self,
        method: str,
        target: str,
        payload: Payload | None,
        query: dict[str, str],
        asked: str,
        headers: dict[str, str],
    ) -> tuple[int, dict[str, str], str]:
        try:
            with self._turn:
                self._allowance.check()
                answer = self._requester.requestJson(method, target, query, headers, payload)
                self._allowance.note(answer[1].get("x-ratelimit-remaining"), _budget_reset(answer[1]))
                return answer
        except requests.exceptions.ContentDecodingError as error:
            raise ProviderFault(f"GitHub's answer to {asked} is damaged; try again later") from error
        except requests.exceptions.RequestException as error:
            why = type(error).__name__
            raise Unreachable(f"GitHub did not answer {asked} ({why}); check the network and `url`") from error
        except RuntimeError as error:  # PyGithub follows redirects of its own host only
            raise ConfigError(f"GitHub redirects {asked} elsewhere; correct `url` or `project`") from error
        except (ValueError, OverflowError) as error:  # PyGithub reads numbers from headers
            raise ProviderFault(f"GitHub's answer to {asked} has unreadable headers; try again later") from error

    def _error(self, status: int, headers: dict[str, str], text: str, asked: str) -> FactoryError:
        words = self.harmless(_reasons(text))
        message = f"GitHub answered {asked} with {status}: {words}"
        if status == 429 or (status == 403 and _is_limit(headers, words)):
            return RateLimited(f"{message}; wait", _reset_at(headers))
        if status == 401 or (status == 403 and not re.search(r"\b(archived|locked)\b", words)):
            return (AuthFailed if status == 401 else _Forbidden)(f"{message}; check `token` and its permissions")
        if 300 <= status < 400:
            return ConfigError(f"{message}; the repository or the server moved: correct `project` or `url`")
        if status in (404, 410):
            return Missing(f"{message}; look whether it was deleted, and what `token` may see")
        if status == 422:
            return Refused(message, words)
        if status >= 500:
            return Unreachable(f"{message}; try again later")
        return UnexpectedStatus(f"{message}; check `url`")

    def _next(self, headers: dict[str, str], seen: set[str]) -> str | None:
        """The address of the page after this one. Raises BrokenPagination when it leads away or in a circle."""
        found = _NEXT.search(headers.get("link", ""))
        if found is None:
            return None
        target = found[1]
        if not target.startswith(f"{self._url}/") or target in seen or len(seen) >= _MOST_PAGES:
            raise BrokenPagination(f"a list of GitHub does not end after {len(seen) + 1} page(s); read it again")
        seen.add(target)
        return target


class Conversation:
    """The comments below one issue or pull request. `key` is what their marks are signed for."""

    def __init__(self, site: GitHub, number: int, key: str) -> None:
        self._site = site
        self._number = number
        self._key = key

    def read(self) -> list[Comment]:
        """All comments, each once, oldest first. Raises ProviderFault for a malformed one."""
        return [comment for _, comment in self._read()]

    def write(self, body: str, marker: str) -> None:
        """Write, or replace in place, our comment with `marker`; the same text again writes nothing."""
        site = self._site
        sealed = seal(site.token, self._key, marker, sendable(body))
        ours = self._ours(marker)
        if not ours:
            site.ask("POST", f"{site.root}/issues/{self._number}/comments", {"body": sealed})
            ours = self._ours(marker)  # another process may have written it in the same moment
        elif ours[0][1].body != unseal(site.token, self._key, sealed)[0]:
            site.ask("PATCH", f"{site.root}/issues/comments/{ours[0][0]}", {"body": sealed})
        for number, comment in ours[1:]:
            if (
                comment.author == ours[0][1].author
            ):  # to the token of an app, the copy of another bot looks like its own
                self._remove(number)

    def _ours(self, marker: str) -> list[tuple[int, Comment]]:
        return [(number, comment) for number, comment in self._read() if comment.marker == marker]

    def _remove(self, number: int) -> None:
        try:
            self._site.ask("DELETE", f"{self._site.root}/issues/comments/{number}")
        except Missing:  # the other process was faster
            return

    def _read(self) -> list[tuple[int, Comment]]:
        found = {}
        for record in self._site.pages(f"{self._site.root}/issues/{self._number}/comments"):
            number = dig(record, "id")
            if not is_number(number):
                raise ProviderFault(f"a comment below {self._key!r} has no usable id; look at it on GitHub")
            found[number] = self._comment(record)
        return sorted(found.items(), key=lambda pair: pair[0])

    def _comment(self, record: Payload) -> Comment:
        user, text = record.get("user"), plain(record.get("body"))
        body, marker = unseal(self._site.token, self._key, text)
        ours = marker is not None and self._site.is_ours(user)
        return Comment(
            author=one_line(dig(user, "login")) or "unknown",
            at=moment(record.get("created_at")),
            body=body if ours else text,
            marker=marker if ours else None,
            member=is_member(record),
        )


def segment(name: str) -> str:
    """A name as one part of a path. Raises ConfigError for those that every client takes for a way up."""
    if name in ("", ".", ".."):
        raise ConfigError(f"{name!r} cannot be the name of a label; use another one")
    return quote(name, safe="")


def is_member(record: object) -> bool:
    """Whether the author of a comment or review belongs to the repository, says GitHub."""
    return dig(record, "author_association") in ("OWNER", "MEMBER", "COLLABORATOR")


def is_number(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def plain(value: object) -> str:
    """A text as it is, without what no database takes (NUL, half characters) and with one kind of line end; else ''."""
    text = value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""
    return text.replace("\0", "").replace("\r\n", "\n")


def sendable(text: str) -> str:
    """A text that GitHub takes."""
    text = plain(text)
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}\n\n… (shortened)"


def sendable_title(title: str) -> str:
    return (one_line(title) or "Untitled")[:_LONGEST_TITLE].rstrip()


def _same(login: object, own: str | None) -> bool:
    return isinstance(login, str) and own is not None and login.casefold() == own.casefold()


def _checked_url(url: str) -> str:
    """The base address without a slash at its end."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and not parts.query
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError("the `url` of a GitHub section is not valid; use https://api.github.com or remove it")
    return url.rstrip("/")


def _checked_token(token: str) -> str:
    if not re.fullmatch(r"[!-~]+", token):
        raise ConfigError("a GitHub `token` is empty or has spaces or other unusual characters; set it anew")
    return token


def _parsed(text: str, asked: str) -> Any:
    try:
        return json.loads(text) if text else None
    except (ValueError, RecursionError) as error:
        raise ProviderFault(f"GitHub's answer to {asked} is not JSON; check `url`") from error


def _items(answer: Any, name: str | None, path: str) -> list[Any]:
    items = answer if name is None else dig(answer, name)
    if not isinstance(items, list):
        raise ProviderFault(f"GitHub's answer to GET {path} holds no list; check `url`")
    return items


def _may_grow(answer: Any, headers: dict[str, str]) -> bool:
    """A full last page stays the same, and would be confirmed, when another page comes after it."""
    return isinstance(answer, list) and len(answer) >= _PAGE and not _NEXT.search(headers.get("link", ""))


def _reasons(text: str) -> str:
    """What GitHub says in `message` and `errors`; nothing for a page of HTML."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    errors = dig(said, "errors")
    details = [_detail(error) for error in errors] if isinstance(errors, list) else []
    return "; ".join(filter(None, [one_line(dig(said, "message")), *details]))


def _detail(error: object) -> str:
    named = [one_line(dig(error, name)) for name in ("field", "code", "message")]
    return one_line(error) or " ".join(filter(None, named))


def _is_limit(headers: dict[str, str], words: str) -> bool:
    spent = headers.get("x-ratelimit-remaining", "").strip() == "0"
    return spent or "retry-after" in headers or bool(_LIMIT.search(words))


def _reset_at(headers: dict[str, str]) -> datetime | None:
    """Retry-After; else when the budget is used up its X-RateLimit-Reset; else in a minute."""
    now = datetime.now(UTC)
    if "retry-after" in headers:
        return retry_after(headers["retry-after"], now)
    if headers.get("x-ratelimit-remaining", "0").strip() == "0":
        return _budget_reset(headers)
    return now + _SECONDARY_LIMIT


def _budget_reset(headers: dict[str, str]) -> datetime | None:
    """When the hour of the budget ends: X-RateLimit-Reset, a Unix time."""
    reset = headers.get("x-ratelimit-reset", "").strip()
    return from_epoch(int(reset), datetime.now(UTC)) if re.fullmatch(r"[0-9]{1,13}", reset) else None
