"""Target voices: who may use which, what is refused before anything is stored, and how a removed one goes on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.integration.cli_support import Fermata
from tests.unit.tasks.material import pitch_curve, sung
from worker.store.voices import VoiceTerms


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of a singer at about 220 Hz."""
    path = tmp_path_factory.mktemp("clip") / "clip.wav"
    curve = pitch_curve([220.0, 220.0], 1.0, 24_000)
    soundfile.write(path, sung(curve, 24_000) * 0.5, 24_000)
    return path


def added(fermata: Fermata, clip: Path, name: str, *more: str, licence: str = "own recording", code: int = 0) -> str:
    """Register a voice; what was said on stderr."""
    rights = ("--owner", "label", "--licence", licence, "--consent", "Ada Singer, 2026-11-02, contract 7")
    done = fermata("voices", "add", name, str(clip), *rights, *more)
    assert code == done.code, done.err
    return done.err


def asked(fermata: Fermata, account: str, clip: Path, target: str) -> tuple[int, str]:
    """Ask for a conversion towards a voice; the exit code, and what was said."""
    done = fermata(
        "jobs", "submit", "vocal_conversion", "--account", account, "--param", f"target={target}", "--input",
        f"voice={clip}",
    )  # fmt: skip
    return done.code, done.err


@pytest.mark.parametrize(
    ("plans", "accounts", "allowed"),
    [
        (None, None, True),
        (("creator",), None, True),
        (("label",), None, False),
        (None, ("ada",), True),
        (None, ("bob",), False),
        (("label",), ("ada",), True),
        ((), (), False),
    ],
)
def test_who_may_use_a_voice(plans: tuple[str, ...] | None, accounts: tuple[str, ...] | None, allowed: bool) -> None:
    """Everybody, or those of a plan and those that are named. Of a removed one nobody."""
    assert allowed is VoiceTerms("alto", plans, accounts, removed=False).allows("ada", "creator")
    assert not VoiceTerms("alto", plans, accounts, removed=True).allows("ada", "creator")


def test_a_voice_is_added_shown_listed_and_removed(fermata: Fermata, clip: Path) -> None:
    """With its rights, what was measured of its clip, and who did it."""
    fermata.account("label")
    added(fermata, clip, "alto", "--account", "ada", "--plan", "creator")
    shown = fermata("voices", "show", "alto", "--json").document
    assert ("alto", "label", "own recording", ["creator"], ["ada"], None) == tuple(
        shown[name] for name in ("name", "owner", "licence", "plans", "accounts", "removed_at")
    )
    assert "contract 7" in shown["consent"]
    assert float(shown["statistics"]["pitch_hz"]) == pytest.approx(220, rel=0.03)
    assert ["alto"] == [voice["name"] for voice in fermata("voices", "list", "--json").document["voices"]]
    assert 0 == fermata("voices", "remove", "alto").code
    removed = fermata("voices", "show", "alto", "--json").document["removed_at"]
    assert removed is not None
    assert removed == fermata("voices", "remove", "alto", "--json").document["removed_at"]
    assert "there is or was a voice 'alto'" in added(fermata, clip, "alto", code=2)


def test_a_voice_that_may_not_be_used_is_refused_and_nothing_is_stored(fermata: Fermata, clip: Path) -> None:
    """Unknown, removed or not for this account: neither a job nor the customer's file is kept, nothing is reserved."""
    for account in ("label", "ada", "bob"):
        fermata.account(account, 100)
    added(fermata, clip, "alto", "--account", "ada")
    added(fermata, clip, "tenor")
    fermata("voices", "remove", "tenor")
    assert (2, True) == _refused(fermata, clip, "bob", "alto", "the voice 'alto' is not in what this account may use")
    assert (2, True) == _refused(fermata, clip, "ada", "tenor", "target: no voice 'tenor'")
    assert (2, True) == _refused(fermata, clip, "ada", "nobody", "target: no voice 'nobody'")
    assert (2, True) == _refused(fermata, clip, "ada", "N0!", "target: must look like")
    assert 0 == asked(fermata, "ada", clip, "alto")[0]


def _refused(fermata: Fermata, clip: Path, account: str, target: str, said: str) -> tuple[int, bool]:
    code, complaint = asked(fermata, account, clip, target)
    assert [] == fermata("jobs", "list", "--account", account, "--json").document["jobs"]
    assert [] == fermata("artifacts", "list", "--account", account, "--json").document["artifacts"]
    return code, said in complaint


@pytest.mark.parametrize(
    ("name", "licence", "account", "said"),
    [
        ("Alto", "mine", "ada", "voice: must be small letters"),
        ("alto", "", "ada", "licence: must be 1 to 500 printable characters"),
        ("alto", "mine", "", "account"),
    ],
)
def test_a_voice_without_a_name_or_rights_is_refused(
    fermata: Fermata, clip: Path, name: str, licence: str, account: str, said: str
) -> None:
    """By the word that is wrong."""
    fermata.account("label")
    assert said in added(fermata, clip, name, "--account", account, licence=licence, code=2)
    assert [] == fermata("voices", "list", "--json").document["voices"]


def test_a_clip_without_a_voice_is_refused(fermata: Fermata, tmp_path: Path) -> None:
    """Before it is stored."""
    fermata.account("label")
    soundfile.write(tmp_path / "silence.wav", np.zeros(24_000), 24_000)
    assert "clip: there is no voice in its first 30 seconds" in added(fermata, tmp_path / "silence.wav", "alto", code=2)
    assert [] == fermata("artifacts", "list", "--account", "label", "--json").document["artifacts"]
