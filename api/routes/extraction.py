"""The answer that a solution states, and the code that it shows.

The functions are pure: text in, text out, None where there is none. The plainest form of an answer
wins: a box over a sentence, a sentence over an equation. Of several of one kind the last wins.
"""

import re

_BOX = re.compile(r"\\f?boxed\s*")
_BARE = re.compile(r"\\?[A-Za-z0-9.,+\-]+")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_STATED = re.compile(
    r"(?:\banswer(?:\s{1,8}to\s{1,8}[^\n:]{1,80}?)?\s{0,8}(?:is|are|=|:)|####)[ \t]*:?[ \t]*(?P<value>[^\n]+)",
    re.IGNORECASE,
)
"""The statement of an answer. Its counts are bounded, so that a search takes time in proportion to
the text, whatever a model was made to say."""
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)")
_NO_SIDE = re.compile(r"[\w=<>!]")
"""A sign that an equals sign may not follow at once, unless it ends a name."""
_NAME = re.compile(r"(?:^|[^\w=<>!])[A-Za-z]\w?$")
_NAME_SIZE = 3
_FENCE = re.compile(r"^[ \t]*(?P<fence>`{3,}|~{3,})[^\n`]*$", re.MULTILINE)
_WRAPPINGS = (("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"), ("`", "`"))


def answer_in(solution: str) -> str | None:
    """Return the answer from `\\boxed{...}`, "the answer is ...", `#### ...` or `x = ...`.

    The last form counts at the end of a line only.
    """
    return _boxed(solution) or _stated(solution) or _equated(solution)


def code_in(solution: str) -> str | None:
    """Return the inside of the last fenced block, None if there is none.

    A block that is not closed, as the text was cut short, reaches to the end.
    """
    opening = None
    code = None
    for fence in _FENCE.finditer(solution):
        if opening is None:
            opening = fence
            code = solution[fence.end() + 1 :]
        elif _closes(fence, opening):
            code = solution[opening.end() + 1 : fence.start()]
            opening = None
    if code is None:
        return None
    return code.rstrip("\n")


def _closes(fence: re.Match[str], opening: re.Match[str]) -> bool:
    return fence[0].strip() == fence["fence"] and fence["fence"].startswith(opening["fence"])


def _boxed(text: str) -> str | None:
    """Return the inside of the last box that is whole."""
    ends = _brace_ends(text)
    last = None
    for match in _BOX.finditer(text):
        last = _box_from(text, match.end(), ends) or last
    return last


def _box_from(text: str, start: int, ends: dict[int, int]) -> str | None:
    """Return the inside of the braces that open at `start`, or the word there without any."""
    if not text.startswith("{", start):
        bare = _BARE.match(text, start)
        return _trimmed(bare[0]) if bare else None
    if start not in ends:
        return None
    return _trimmed(text[start + 1 : ends[start]])


def _brace_ends(text: str) -> dict[int, int]:
    """Return where each brace that opens is closed.

    A brace behind a backslash is a sign like any other.
    """
    ends: dict[int, int] = {}
    unclosed: list[int] = []
    for match in _BRACE.finditer(text):
        if match[0] == "{":
            unclosed.append(match.start())
        elif match[0] == "}" and unclosed:
            ends[unclosed.pop()] = match.start()
    return ends


def _stated(text: str) -> str | None:
    """Return the last answer that a sentence states."""
    last = None
    for match in _STATED.finditer(text):
        sentence = _SENTENCE_END.split(match["value"])[0]
        last = _trimmed(sentence) or last
    return last


def _equated(text: str) -> str | None:
    """Return what is behind the last equals sign of the last line that has one.

    The sign must follow a name or nothing.
    """
    for line in reversed(text.split("\n")):
        left, equals, value = line.rpartition("=")
        if equals and _is_side(left):
            answer = _trimmed(value)
            if answer:
                return answer
    return None


def _is_side(left: str) -> bool:
    """Return whether this can stand before an equals sign whose other side is an answer."""
    if not left or not _NO_SIDE.match(left[-1]):
        return True
    return _NAME.search(left[-_NAME_SIZE:]) is not None


def _trimmed(value: str) -> str | None:
    """Return a value without the signs that set it off, and without a full stop behind it."""
    value = value.strip().rstrip(".,;:").strip()
    inner = _unwrapped(value)
    if inner is not None:
        value = inner.strip().rstrip(".,;:").strip()
    return value or None


def _unwrapped(value: str) -> str | None:
    """Return the inside of the signs of a formula or of an emphasis; None without them."""
    if len(value) > 1 and value.startswith("$") and value.endswith("$"):
        return value.strip("$")
    for opening, closing in _WRAPPINGS:
        is_long = len(value) >= len(opening) + len(closing)
        if is_long and value.startswith(opening) and value.endswith(closing):
            return value[len(opening) : -len(closing)]
    return None
