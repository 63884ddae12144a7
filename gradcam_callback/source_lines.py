"""Lines of source code as they may be quoted: what looks like a secret is masked."""

from __future__ import annotations

import linecache
import re

MASK = "***"
LONGEST = 1000  # in characters; what stands behind that is left out

_PASSWORD = r"(?:pass_?(?:word|wd|phrase)|pwd|secret)"
_SECRET_NAME = (
    rf"(?:{_PASSWORD}|token(?!i[sz])|credential|auth(?!ors?(?![a-z]))|(?:api|access|account|private|signing)[_-]?key)"
)
# What stands between a name and its value: in an assignment, an argument, an item, a comparison, a default.
_BETWEEN = r"\w*['\"\]]*(?:\s*:[^='\"]*)?\s*(?:[=!]?=|[:,(])\s*[(\[{]*\s*"
# `num_tokens = 197` is a vision transformer's.
_NAMED_TEXT = re.compile(rf"{_SECRET_NAME}{_BETWEEN}[rbfu]{{0,2}}['\"]|{_PASSWORD}{_BETWEEN}\d", re.IGNORECASE)
# Inside a text or a comment: `password=...`, `Bearer ...`.
_NAMED_VALUE = re.compile(rf"{_SECRET_NAME}\w*\s*[=:]\s*[^\s{{'\"]|\b(?:bearer|basic)\s+[\w+/=.-]{{8,}}", re.IGNORECASE)
# A line of a longer text, such as YAML in a triple-quoted string. `token = patches` is code.
_BARE_VALUE = re.compile(rf"^\s*[\w.-]*(?!token){_SECRET_NAME}[\w-]*\s*[:=]\s*[\w./+-]+\s*$", re.IGNORECASE)
_KNOWN_FORM = re.compile(
    r"\b(?:AKIA|ASIA)[0-9A-Z]{12,}|\bgh[pousr]_\w{16,}|\bgithub_pat_\w+|\bglpat-[\w-]{16,}|\bsk-[\w-]{16,}"
    r"|\bxox[abeprs]-[\w-]{8,}|\bhf_[A-Za-z0-9]{16,}|\bAIza[\w-]{30,}|\beyJ[\w-]{10,}\.|-----BEGIN|://[^\s/@'\"]+@"
)
_MIXED = r"(?=[^\s'\"]*[a-z])(?=[^\s'\"]*[A-Z])(?=[^\s'\"]*\d)"
# Four digits at least: `FrozenResNet50BackboneWithFeaturePyramid` is a class.
_RANDOM = re.compile(rf"(?<!\w)(?:[0-9a-fA-F]{{32,}}|{_MIXED}(?=(?:\D*\d){{4}})[A-Za-z0-9+/]{{40,}})={{0,2}}(?!\w)")
_RANDOM_TEXT = re.compile(rf"{_MIXED}[A-Za-z0-9+/]{{20,}}")

_TEXT = re.compile(r"[rbfu]{0,2}('''|\"\"\"|'|\")((?:\\.|(?!\1).)*)(?:\1|$)", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![\w.])\d\w*")


def source_line(file: str, number: int) -> str:
    """A line of a file, masked, without what stands behind it; empty where there is none.

    Args:
        file: Its path, or the name that Python knows the code by.
        number: From 1.
    """
    return mask_secrets(linecache.getline(file, number).rstrip())


def mask_secrets(line: str) -> str:
    """A line of code, with `***` for its texts if it looks as if a password, a token or a key were in it.

    All texts of such a line are masked, or its numbers where it has no texts. If it still looks like one, all of it is.
    """
    line = line[:LONGEST]
    if not _looks_secret(line):
        return line
    masked = _TEXT.sub(f'"{MASK}"', line)
    masked = masked if masked != line else _NUMBER.sub(MASK, line)
    if masked != line and not _looks_secret(masked):
        return masked
    return line[: len(line) - len(line.lstrip())] + MASK


def _looks_secret(line: str) -> bool:
    line = line.replace(f'"{MASK}"', MASK)
    patterns = (_NAMED_TEXT, _BARE_VALUE, _KNOWN_FORM, _RANDOM)
    if any(pattern.search(line) for pattern in patterns):
        return True
    texts = [match[2] for match in _TEXT.finditer(line)]
    comment = _TEXT.sub("", line).partition("#")[2]
    return any(_NAMED_VALUE.search(text) for text in (*texts, comment)) or any(map(_RANDOM_TEXT.search, texts))
