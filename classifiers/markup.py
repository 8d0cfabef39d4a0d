"""Is a document HTML? What its source says of it counts, then its name, then how it begins."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

SNIFFED = 2048  # characters
CONTENT_TYPES = ("content_type", "content-type", "mime_type", "mime")
NAMES = ("file", "path", "name", "url")
_HTML_TYPES = ("text/html", "application/xhtml+xml")
_HTML_NAME = re.compile(r"\.(?:x?html?|xht)(?:\.(?:gz|zst|bz2|xz))?(?:[?#].*)?$", re.IGNORECASE | re.DOTALL)
# A Markdown file may begin with <p align=...>, but hardly with these.
_HTML_TAG = re.compile(r"<(?:!doctype\s+html|html|head|body)[\s>]", re.IGNORECASE)
_BEFORE = re.compile(r"[\s\0\ufeff]+|<\?xml[^>]{0,200}\?>|<!--(?:[^-]|-(?!->)){0,1500}-->", re.IGNORECASE)


def is_html(text: str, meta: Mapping[str, Any]) -> bool:
    """Tell whether a document is HTML: by the content type in its metadata, its file name or URL, or its beginning.

    A content type of text or JSON settles it as well as one of HTML; one that says nothing (`application/octet-stream`)
    and a name with any other ending leave it to the next sign: a `.jsonl` or `.warc` holds rows of any kind.
    """
    kind = next((str(meta[name]) for name in CONTENT_TYPES if meta.get(name)), "").partition(";")[0].strip().lower()
    if kind in _HTML_TYPES:
        return True
    if kind.startswith("text/") or kind in ("application/json", "application/xml"):
        return False
    return any(_HTML_NAME.search(str(meta[name])) for name in NAMES if meta.get(name)) or begins_as_html(text)


def begins_as_html(text: str) -> bool:
    """Tell whether a text begins with HTML's own tags, after white space, an XML declaration and comments."""
    head, position = text[:SNIFFED], 0
    while before := _BEFORE.match(head, position):
        position = before.end()
    return bool(_HTML_TAG.match(head, position))
