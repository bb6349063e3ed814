"""Texts that may hold a password or a key: what is refused where a configuration is read.

A configuration stands in config.yaml, in messages, in reports and at trackers. So nothing of a text
that is refused here is shown.
"""

import re

_ADDRESS = re.compile(r"https?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?(/[^\s?#@;%]*)?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LOGIN = re.compile(r":/.*@|^[^\s/]+:[^\s/]*@", re.DOTALL)
"""user:password@ behind a scheme, however that is written, or at the beginning."""
_QUERY = re.compile(
    r"[?&;][^=&;\s]*(key|token|password|passwd|pwd|secret|auth|signature|sig)=\S", re.IGNORECASE
)


def is_address(text: object) -> bool:
    """Whether this is the plain address of a server, `http://host:8000/v1`: without user, password,
    query or fragment."""
    return isinstance(text, str) and _ADDRESS.fullmatch(text) is not None


def is_variable(text: object) -> bool:
    """Whether this can be the name of an environment variable: a key itself is mostly none."""
    return isinstance(text, str) and _VARIABLE.fullmatch(text) is not None


def why_no_addresses(urls: object) -> str:
    """What is wrong with a list of addresses, in words that repeat none of it; "" for nothing."""
    if isinstance(urls, str) or not isinstance(urls, list | tuple) or not urls:
        return "must be a list of addresses, [http://host:8000/v1]"
    wrong = [n for n, url in enumerate(urls, 1) if not is_address(url)]
    if not wrong:
        return ""
    return (
        f"entry {wrong[0]} of {len(urls)} is no plain address like http://host:8000/v1. It is not "
        "shown, for it may hold a password: write it without a user, a password and what follows "
        "? or #, and name the environment variable that holds a key in api_key_env, user:password "
        "in login_env"
    )


def has_login(text: str) -> bool:
    """Whether a text looks like a URL, whole or not, with a login or a key in it."""
    return bool(_LOGIN.search(text) or _QUERY.search(text))
