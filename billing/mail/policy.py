"""How a mail's headers and parts become bytes."""

from __future__ import annotations

from email.header import Header
from email.policy import EmailPolicy
from typing import Any


class _Policy(EmailPolicy):
    """RFC 5322 lines, and subjects that are read back to the letter.

    Python's own folding of a subject that is not all ASCII loses or doubles a blank where a line ends.
    """

    def fold(self, name: str, value: Any) -> str:
        """A header with the end of its line. Source: `email.policy.EmailPolicy`."""
        return _encoded(name, str(value), self.linesep) or super().fold(name, value)

    def fold_binary(self, name: str, value: Any) -> bytes:
        """The same as bytes."""
        return _encoded(name, str(value), self.linesep).encode() or super().fold_binary(name, value)


def _encoded(name: str, text: str, end: str) -> str:
    """A subject that is not all ASCII, all of it in encoded words; nothing for any other header."""
    if name.lower() != "subject" or text.isascii():
        return ""
    return f"{name}: {Header(text, 'utf-8', header_name=name).encode(linesep=end)}{end}"


# Seven bits: a relay that knows no other takes the mail unchanged.
POLICY = _Policy(linesep="\r\n", cte_type="7bit")
