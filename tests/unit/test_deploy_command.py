"""The command that people of a server type: with the settings that its processes have."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUCKET = "s3://audio/songs?endpoint=https://s3.example&region=eu"


def settings_seen(folder: Path, **already: str) -> dict[str, str]:
    """What a command started by it has in its environment."""
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bin/fermata").unlink(missing_ok=True)
    env = shutil.which("env")
    assert env is not None
    (folder / "bin/fermata").symlink_to(env)
    done = subprocess.run(
        [str(ROOT / "deploy/fermata")],
        env={"PATH": "/usr/bin:/bin", "ETC_FERMATA": str(folder), "OPT_FERMATA": str(folder), **already},
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    assert "" == done.stderr
    pairs = (line.partition("=") for line in done.stdout.splitlines())
    return {name: value for name, _, value in pairs if name.startswith("FERMATA_")}


def test_settings_are_read_as_systemd_reads_them(tmp_path: Path) -> None:
    """A URL's & and # are its own, quotes around a value are not; comments and empty lines are nothing."""
    (tmp_path / "common.env").write_text(f'# of all\n\nFERMATA_ARTIFACTS_URL={BUCKET}\nFERMATA_NAMESPACE="a b"\n')
    (tmp_path / "api.env").write_text("FERMATA_DATABASE_URL=postgresql://fermata_app:a$b#c@db/fermata")  # no newline
    assert {
        "FERMATA_ARTIFACTS_URL": BUCKET,
        "FERMATA_NAMESPACE": "a b",
        "FERMATA_DATABASE_URL": "postgresql://fermata_app:a$b#c@db/fermata",
    } == settings_seen(tmp_path)


def test_what_a_person_has_set_wins(tmp_path: Path) -> None:
    """As the runbook's look at a restored database wants it."""
    (tmp_path / "common.env").write_text("FERMATA_NAMESPACE=here\n")
    (tmp_path / "api.env").write_text("FERMATA_DATABASE_URL=one\n")
    seen = settings_seen(tmp_path, FERMATA_DATABASE_URL="other", FERMATA_ACTOR="kim")
    assert {"FERMATA_NAMESPACE": "here", "FERMATA_DATABASE_URL": "other", "FERMATA_ACTOR": "kim"} == seen


def test_deploy_says_how_people_get_it() -> None:
    """Before anything that calls it by its name."""
    page = (ROOT / "docs/DEPLOY.md").read_text()
    assert page.index("deploy/fermata /usr/local/bin/") < page.index("\nfermata doctor\n")
    assert page.index("adduser --system") < page.index("enable --now")
