"""Links for providers: each opens one thing, for whoever holds it."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import pytest

from config.settings import SettingsError, load
from worker.links import Links, links_of
from worker.redaction import clean

LINKS = Links("https://fermata.example/", b"x" * 32)
ONE, OTHER = UUID(int=1), UUID(int=2)


def query_of(url: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}


def test_a_completion_link_is_for_one_job() -> None:
    """Not for another, not for one who changes its key, not under another secret."""
    url = LINKS.completion(ONE)
    assert url.startswith(f"https://fermata.example/v1/engines/webhooks?job={ONE}&key=")
    key = query_of(url)["key"]
    assert LINKS.opens_completion(ONE, key)
    assert not LINKS.opens_completion(OTHER, key)
    assert not LINKS.opens_completion(ONE, key[:-1])
    assert not LINKS.opens_completion(ONE, "ü")
    assert not Links("https://fermata.example", b"y" * 32).opens_completion(ONE, key)


def test_an_input_link_is_for_one_artifact_and_a_while() -> None:
    """Whoever puts its end off has another key to find; one of completions opens nothing."""
    key = query_of(LINKS.input(ONE, 1000))["key"]
    assert LINKS.opens_input(ONE, 1000, key, now=999.9)
    assert not LINKS.opens_input(ONE, 1000, key, now=1000)
    assert not LINKS.opens_input(ONE, 2000, key, now=999)
    assert not LINKS.opens_input(OTHER, 1000, key, now=999)
    assert not LINKS.opens_input(ONE, 1000, query_of(LINKS.completion(ONE))["key"], now=999)


def test_a_secret_can_be_exchanged_while_links_are_out() -> None:
    """The one before opens what it signed; the new one signs; a third opens nothing."""
    later = Links(LINKS.public_url, b"y" * 32, b"x" * 32)
    assert later.opens_completion(ONE, query_of(LINKS.completion(ONE))["key"])
    assert later.opens_input(ONE, 1000, query_of(LINKS.input(ONE, 1000))["key"], now=999)
    assert not later.opens_input(ONE, 1000, query_of(LINKS.input(ONE, 1000))["key"], now=1000)
    assert Links(LINKS.public_url, b"y" * 32).completion(ONE) == later.completion(ONE)
    assert not Links(LINKS.public_url, b"z" * 32).opens_completion(ONE, query_of(later.completion(ONE))["key"])
    assert "xxx" not in repr(later)


def test_both_settings_make_links() -> None:
    """Neither: providers don't come here. One alone, or a secret that can be guessed, is refused at start."""
    assert links_of(load({})) is None
    both = {"FERMATA_PUBLIC_URL": "https://fermata.example", "FERMATA_LINK_SECRET": "s" * 32}
    assert Links("https://fermata.example", b"s" * 32) == links_of(load(both))
    before = {**both, "FERMATA_LINK_SECRET_BEFORE": "o" * 32}
    assert Links("https://fermata.example", b"s" * 32, b"o" * 32) == links_of(load(before))
    with pytest.raises(SettingsError, match="FERMATA_LINK_SECRET_BEFORE needs FERMATA_LINK_SECRET"):
        load({"FERMATA_LINK_SECRET_BEFORE": "o" * 32})
    with pytest.raises(SettingsError, match="FERMATA_LINK_SECRET_BEFORE: "):
        load({**both, "FERMATA_LINK_SECRET_BEFORE": "CANARY"})
    for name in both:
        with pytest.raises(SettingsError, match="FERMATA_PUBLIC_URL and FERMATA_LINK_SECRET go together"):
            load({name: both[name]})
    with pytest.raises(SettingsError, match="FERMATA_LINK_SECRET: "):
        load({**both, "FERMATA_LINK_SECRET": "CANARY"})
    with pytest.raises(SettingsError, match="FERMATA_PUBLIC_URL: "):
        load({**both, "FERMATA_PUBLIC_URL": "https://name:pass@fermata.example"})


def test_no_log_holds_a_link_that_opens_something() -> None:
    """A provider may send back what it was given."""
    signed = "https://bucket.example/song?X-Amz-Expires=900&X-Amz-Signature=0123456789abcdef&x=1"
    said = clean(f'{{"audio": "{LINKS.input(ONE, 1000)}", "mix": "{signed}"}}')
    assert query_of(LINKS.input(ONE, 1000))["key"] not in said
    assert "0123456789abcdef" not in said
    assert "x=1" in said
