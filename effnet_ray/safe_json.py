"""Parses untrusted JSON: every text in the result can be encoded again."""

import json
import re
from typing import Any

SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
"""The escape of half a character. Two of them are one; alone it cannot be encoded."""


def parse(data: bytes | str) -> Any:
    """The value. Raises ValueError, mostly JSONDecodeError, for what is no JSON."""
    text = data if isinstance(data, str) else data.decode(json.detect_encoding(data))
    try:
        value = json.loads(text)
        if SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value
