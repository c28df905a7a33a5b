"""What a form sent: small, URL-encoded, each field once."""

from __future__ import annotations

from urllib.parse import parse_qsl

from starlette.requests import Request

from worker.store.errors import Refused

#: The largest form is a price book's; books of that size are refused when they are read, with the reason.
FORM_BYTES_MAX = 512 * 1024
_FIELDS_MAX = 1100


async def read_form(request: Request) -> Form:
    """The fields of a POST. Raises `Refused` for what is no form, or too large."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/x-www-form-urlencoded":
        raise Refused("form", "must be sent as a form")
    body = bytearray()
    async for block in request.stream():
        body += block
        if len(body) > FORM_BYTES_MAX:
            raise Refused("form", f"has more than {FORM_BYTES_MAX // 1024} KiB")
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=_FIELDS_MAX, errors="strict")
    except (ValueError, UnicodeDecodeError):
        raise Refused("form", "can't be read") from None
    if any("\0" in text for pair in pairs for text in pair):
        raise Refused("form", "must not contain NUL characters")
    return Form(pairs)


class Form:
    """The fields, as they were typed."""

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self._values: dict[str, list[str]] = {}
        for name, value in pairs:
            self._values.setdefault(name, []).append(value)

    def text(self, name: str) -> str:
        """What was typed, without the blanks around it; "" if nothing was."""
        return self._values.get(name, [""])[0].strip()

    def verbatim(self, name: str) -> str:
        """A document, as it was typed: lines end as on our machines."""
        return self._values.get(name, [""])[0].replace("\r\n", "\n")

    def many(self, name: str) -> list[str]:
        """Every value of a list of boxes."""
        return self._values.get(name, [])

    def names(self, begin: str) -> list[str]:
        """The names of the fields that begin so."""
        return [name for name in self._values if name.startswith(begin)]

    def optional(self, name: str) -> str | None:
        """As `text`, None where nothing was typed."""
        return self.text(name) or None

    def whole(self, name: str, least: int, most: int) -> int:
        """A whole number, in digits alone: whether `10,50` is ten or a thousand is not guessed. Raises `Refused`."""
        typed = self.text(name)
        if not (typed.isascii() and typed.isdigit() and len(typed) <= 19) or not least <= int(typed) <= most:
            raise Refused(name, f"must be a whole number from {least:,} to {most:,}, in digits alone")
        return int(typed)

    def line(self, name: str) -> str:
        """A text that must be there. Raises `Refused`."""
        typed = self.text(name)
        if not typed:
            raise Refused(name, "must be given")
        return typed
