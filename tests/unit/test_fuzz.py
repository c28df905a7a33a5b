"""Bytes and texts from strangers, made up by Hypothesis: each is taken, or refused in words; nothing else ever happens.

The same few each time with all tests; `make fuzz` makes up new ones for a minute.
"""

from __future__ import annotations

import asyncio
import io
import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from decimal import Decimal
from functools import cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

import config
from config.settings import SettingsError, load
from tasks.audio import Probed, ProbeLimits, probe
from tasks.engines.child import close_children
from tasks.kind import RefusedRequest
from tasks.registry import RegistryError, registry
from worker.credits.plans import PlanBookError, parse_plan_book
from worker.credits.price_book import PriceBook
from worker.credits.prices import PriceBookError, PriceTooHigh, UnknownPrice, Usage, parse_price_book, price
from worker.queue.hints import PAIRS_MAX, decode, encode
from worker.web.fields import AccountPath, JobId
from worker.webhooks.targets import ForbiddenTarget, check_addresses, check_url, resolved

#: `make fuzz` loads this profile.
LONG = settings.get_current_profile_name() == "fuzz"


def fuzzed(examples: int) -> settings:
    """That many examples, always the same; in a long run fifteen times as many, and new ones."""
    return settings(
        max_examples=examples * (15 if LONG else 1),
        derandomize=not LONG,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def mutated(whole: bytes) -> st.SearchStrategy[bytes]:
    """Pieces cut out, doubled, overwritten or put in, a few times."""

    def edited(edits: list[tuple[int, int, str, bytes]]) -> bytes:
        content = whole
        for at, length, how, piece in edits:
            at %= len(content) + 1
            old = content[at : at + length]
            new = {"cut": b"", "double": old * 2, "put": piece + old, "overwrite": piece}[how]
            content = content[:at] + new + content[at + length :]
        return content

    hows = st.sampled_from(["cut", "double", "put", "overwrite"])
    pieces = st.binary(max_size=8) | st.sampled_from([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"-1", b"nan", b'"'])
    edit = st.tuples(st.integers(0, len(whole)), st.integers(0, 64), hows, pieces)
    return st.lists(edit, min_size=1, max_size=6).map(edited)


# --- audio


@cache
def a_file(container: str, encoding: str) -> bytes:
    """A fifth of a second of noise."""
    sound = np.random.default_rng(7).standard_normal((4_410, 2)) * 0.1
    whole = io.BytesIO()
    soundfile.write(whole, sound.astype(np.float32), 22_050, format=container, subtype=encoding)
    return whole.getvalue()


FILES = [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")]


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    """One loop for all probes: the decoding child stays warm in it."""
    with asyncio.Runner() as one:
        yield one
        one.run(close_children())


@pytest.mark.parametrize(("container", "encoding"), FILES)
def test_any_audio_file_is_measured_or_refused(
    container: str, encoding: str, runner: asyncio.Runner, tmp_path: Path
) -> None:
    """Never our failure, and what is measured is what an independent decoder finds in the very same bytes."""
    path = tmp_path / "strange"
    limits = ProbeLimits(bytes_max=1024**2, seconds_max=60, probe_seconds=20)

    @fuzzed(15)
    @given(content=mutated(a_file(container, encoding)))
    def probed(content: bytes) -> None:
        path.write_bytes(content)
        found: Probed | None = None
        try:
            found = runner.run(probe(path, field="file", limits=limits))
        except RefusedRequest as refused:
            assert refused.field == "file"
            assert refused.problem.isprintable()
            assert len(refused.problem) < 300
        if found is not None:
            assert found.bytes == len(content)
            assert 0 < found.info.frames <= 60 * found.info.sample_rate
            with soundfile.SoundFile(path) as file:
                assert len(file.read(always_2d=True)) == found.info.frames

    probed()


# --- books and documents


SHIPPED = Path(config.__file__).parent
ENGINES = b"""[engines.tin]
type = "cog"
url = "https://engines.example/predictions"
secret_file = "/run/secrets/tin"
timeout_seconds = 30
[tiers.generation]
studio = "tin"
[gates.generation]
silent_db = -60
"""


@fuzzed(60)
@given(content=mutated((SHIPPED / "prices.toml").read_bytes()))
@example(content=b"x = " + b"[" * 5_000)
@example(content=b"[generation]\nbase = " + b"9" * 5_000)
def test_any_price_book_is_whole_or_refused(content: bytes) -> None:
    """A book that is taken prices whatever is asked of it, upwards of nothing."""
    document = content.decode(errors="replace")
    book: PriceBook | None = None
    try:
        book = parse_price_book(document, kinds=list(registry()))
    except PriceBookError as refused:
        assert refused.problems
    if book is not None:
        assert book.document == document
        for kind in registry():
            with suppress(PriceTooHigh):
                usage = Usage(seconds_in=Decimal(30), seconds_out=Decimal(30))
                assert price(book, kind, [usage], {"model": "standard"}, "creator").total >= 0
        with pytest.raises(UnknownPrice):
            price(book, "no such kind", [], {}, None)


@fuzzed(60)
@given(content=mutated((SHIPPED / "plans.toml").read_bytes()))
@example(content=b"x = " + b"[" * 5_000)
@example(content=b"[plans.a]\nmonthly_credits = " + b"9" * 5_000)
def test_any_plan_book_is_whole_or_refused(content: bytes) -> None:
    """A plan that is taken grants something, and no more than the bound."""
    try:
        book = parse_plan_book(content.decode(errors="replace"))
    except PlanBookError as refused:
        assert refused.problems
    else:
        assert all(0 <= plan.monthly_credits <= 10**12 for plan in book.plans.values())


@pytest.fixture
def engines_file(tmp_path: Path) -> Path:
    return tmp_path / "engines.toml"


def test_any_engines_document_is_whole_or_refused(engines_file: Path) -> None:
    """In one line; nothing that it names is opened or started by reading it."""

    @fuzzed(60)
    @given(content=mutated(ENGINES) | st.binary(max_size=200))
    @example(content=b"x = " + b"[" * 5_000)
    @example(content=b"[engines.tin]\nhertz = " + b"9" * 5_000)
    def read(content: bytes) -> None:
        engines_file.write_bytes(content)
        try:
            kinds = registry(engines=engines_file)
        except RegistryError as refused:
            assert str(refused).strip()
        else:
            assert set(kinds) == set(registry())

    read()


@fuzzed(100)
@given(
    name=st.sampled_from(["FERMATA_DATABASE_URL", "FERMATA_REDIS_URL", "FERMATA_SLOTS", "FERMATA_DATABASE_URL_FILE"]),
    value=st.text(max_size=80).filter(lambda text: "\0" not in text)
    | st.text("postgresdi:/@[]?=&%#.0123456789abc", max_size=80).map("postgresql://u:hunter2canary@{}".format),
)
def test_any_setting_is_read_or_refused_without_its_value(name: str, value: str) -> None:
    """Whatever was typed: a refusal names the variable and shows nothing of what it held."""
    try:
        load({name: value})
    except SettingsError as refused:
        assert name.removesuffix("_FILE") in str(refused)
        assert "hunter2canary" not in str(refused)


# --- hints from Redis


A_HINT = encode("generation", [("ada", UUID("01a216d7-2539-77aa-8000-000000000001")), ("bob", UUID(int=7))])[1]
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.uuids().map(str),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@fuzzed(200)
@given(raw=mutated(A_HINT))
def test_any_message_is_a_hint_of_ids_or_nothing(raw: bytes) -> None:
    """What passes is up to sixteen pairs of an account's id and a job's."""
    hint = decode(raw)
    if hint is not None:
        assert 1 <= len(hint.pairs) <= PAIRS_MAX
        assert all(isinstance(account, str) and isinstance(job, UUID) for account, job in hint.pairs)


@fuzzed(200)
@given(field=st.sampled_from(sorted(json.loads(A_HINT))), value=JUNK)
def test_any_field_of_a_message_is_what_it_must_be(field: str, value: Any) -> None:
    """Everything else about a hint's shape may be forged: ids are all that comes through."""
    hint = decode(json.dumps({**json.loads(A_HINT), field: value}).encode())
    if hint is not None:
        assert {type(account) for account, _ in hint.pairs} == {str}
        assert {type(job) for _, job in hint.pairs} == {UUID}


# --- where a webhook may lead


PRIVATE = [
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"),
    *("192.0.0.0/29", "192.0.2.0/24", "198.18.0.0/15", "224.0.0.0/4", "240.0.0.0/4"),
]


def spelt(address: IPv4Address) -> list[str]:
    """The ways in which resolvers read an IPv4 address."""
    number, parts = int(address), address.packed
    a, b, c, d = parts
    return [
        *(str(address), str(number), hex(number), f"0{number:o}", f"{a}.{number & 0xFFFFFF}"),
        *(f"{a}.{b}.{(c << 8) + d}", ".".join(f"0{part:o}" for part in parts), ".".join(map(hex, parts))),
        f"[::ffff:{address}]",
        f"[{IPv6Address(number)}]",
        f"[64:ff9b::{address}]",
        f"[{IPv6Address((0x2002 << 112) | (number << 80))}]",
        f"[{IPv6Address((0x20010000 << 96) | (number ^ 0xFFFFFFFF))}]",
    ]


@st.composite
def private_hosts(draw: st.DrawFn) -> str:
    """An address that is nobody's on the internet, as somebody might hide it in a URL."""
    network = IPv4Network(draw(st.sampled_from(PRIVATE)))
    address = network[draw(st.integers(0, network.num_addresses - 1))]
    return draw(st.sampled_from(spelt(address)))


@fuzzed(150)
@given(host=private_hosts(), port=st.sampled_from(["", ":443", ":8443"]))
def test_no_spelling_of_a_private_address_is_told_anything(host: str, port: str) -> None:
    """By what it says, or by what it is resolved to: numbers only, so no name server is asked."""

    async def led() -> list[str]:
        parts = check_url(f"https://{host}{port}/hook", private_too=False)
        assert parts.hostname is not None
        return list(await resolved(parts.hostname, parts.port or 443))

    with pytest.raises(ForbiddenTarget):
        check_addresses(asyncio.run(led()), private_too=False)


@fuzzed(200)
@given(url=st.text(max_size=60) | st.text("https:/@[].?#%\\ab01\t\n", max_size=40).map("https://{}".format))
@example(url="https://good@evil.example/")
@example(url="https://evil.example\\@good.example/")
@example(url="https://[::1%25lo]/")
def test_any_text_is_an_endpoint_or_refused(url: str) -> None:
    """What is taken names one host over https and nobody's password."""
    try:
        parts = check_url(url, private_too=False)
    except ForbiddenTarget as refused:
        assert str(refused).isprintable()
    else:
        assert parts.scheme == "https"
        assert parts.hostname
        assert parts.username is None
        assert parts.password is None


@fuzzed(300)
@given(given_id=st.text(max_size=40) | st.text("0123456789abcdefABCDEF-{}", min_size=36, max_size=36))
@example(given_id="0198c2f47a107b3e9c550d6f2a1b4e88----")
@example(given_id="{0198c2f4-7a10-7b3e-9c550d6f2a1b4e88}")
@example(given_id="0198C2F4-7A10-7B3E-9C55-0D6F2A1B4E88")
def test_any_text_is_an_id_as_it_is_written_or_refused(given_id: str) -> None:
    """One id has one way to be written but for its case."""
    try:
        found = TypeAdapter(JobId).validate_python(given_id)
    except ValidationError as refused:
        assert "an id such as" in str(refused.errors()[0]["msg"])
    else:
        assert given_id.lower() == str(found)


@fuzzed(300)
@given(name=st.text(max_size=140) | st.text("aZ09._:@/-%2F\n ", max_size=20))
@example(name="../../etc")
@example(name="a\n")
def test_any_text_is_an_account_or_refused(name: str) -> None:
    """What is taken is printable ASCII that no shell, address or terminal reads as anything else."""
    try:
        found = TypeAdapter(AccountPath).validate_python(name)
    except ValidationError:
        return
    assert found == name.replace("%2F", "/").replace("%25", "%")
    assert 1 <= len(found) <= 128
    assert found.isascii()
    assert found.isprintable()
    assert not set(found) & set(" %\\\"'`$&;<>|(){}*?#\n")


def test_the_resolver_reads_numbers_without_asking_anybody() -> None:
    """What the two above rest on: a host that is a number in any base is one here too."""
    assert "127.0.0.1" in {entry[4][0] for entry in socket.getaddrinfo("0x7f000001", 443, type=socket.SOCK_STREAM)}
