"""What our pages for ops name is there: alerts, verbs, settings, units."""

from __future__ import annotations

import re
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml

from config.settings import PREFIX, SECRET_FILES, Settings, load
from worker.cli.entry import app
from worker.credits.outcomes import RULES
from worker.web.access import PERMISSIONS, May
from worker.webhooks.events import EVENTS

ROOT = Path(__file__).parents[2]
PAGES = (
    "README.md",
    "docs/RUNBOOK.md",
    "docs/DEPLOY.md",
    "docs/GLOSSARY.md",
    "docs/ENGINES.md",
    "docs/API.md",
    "deploy/alerts.yml",
)
UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))
#: In a page a command begins a line or a quote, or follows what is set for it.
COMMAND = re.compile(r"(?:^|[`;|(]|[A-Z_]+=\S+) *(?:&& *)?fermata ((?:[a-z][a-z-]+ ?)+)", re.MULTILINE)


def verbs_in(page: str) -> set[str]:
    """Each command of ours in a page, without its arguments."""
    found = set()
    for words in COMMAND.findall((ROOT / page).read_text()):
        first, *others = words.split()
        group = first in app and app[first].default_command is None
        found.add(f"{first} {others[0]}" if group and others else first)
    return found


@pytest.mark.parametrize("page", PAGES)
def test_every_verb_that_a_page_names_is_one(page: str) -> None:
    """Nobody is told to type what there isn't."""
    for verb in sorted(verbs_in(page)):
        at = app
        for word in verb.split():
            assert word in at, f"{page}: fermata {verb}"
            at = at[word]


def test_verbs_are_found_in_pages() -> None:
    """So that the test above can fail."""
    assert {"jobs force-end", "pause", "drain", "prices overcharged", "migrate"} <= verbs_in("docs/RUNBOOK.md")


def test_every_alert_has_its_section() -> None:
    """What it means, how to look, what to do; and no section is for an alert that there isn't."""
    groups = yaml.safe_load((ROOT / "deploy" / "alerts.yml").read_text())["groups"]
    alerts = [rule["alert"] for group in groups for rule in group["rules"]]
    page = (ROOT / "docs" / "RUNBOOK.md").read_text()
    sections = dict(re.findall(r"^### (Fermata\w+)\n(.*?)(?=^##)", page, re.MULTILINE | re.DOTALL))
    assert sorted(alerts) == sorted(sections)
    for alert, section in sections.items():
        assert all(f"**{part}**" in section for part in ("Means", "Look", "Do")), alert


@pytest.mark.parametrize("page", PAGES)
def test_every_setting_that_a_page_names_is_one(page: str) -> None:
    """A misspelt one would stop a process."""
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields} | SECRET_FILES.keys()
    others = {"FERMATA_ACTOR", "FERMATA_URL", "FERMATA_KEY"}  # the command's, and the client's examples
    assert set(re.findall(r"FERMATA_[A-Z_]*[A-Z]", (ROOT / page).read_text())) <= known | others


def unit(path: Path) -> dict[str, str]:
    """A unit's section `Service`; of a key that comes twice the last."""
    parser = ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # as the parser's own page does
    parser.read(path)
    return dict(parser["Service"])


def test_each_process_has_its_unit() -> None:
    """Each line of the Procfile, by its verb."""
    lines = (ROOT / "Procfile").read_text().splitlines()
    verbs = {line.split("fermata ")[1].split()[0] for line in lines}
    assert verbs == {unit(path)["ExecStart"].split("fermata ")[1].split()[0] for path in UNITS}


def test_a_worker_may_drain_before_it_is_killed() -> None:
    """systemd waits for longer than a drain and a hand-back take, and signals the process alone."""
    worker = unit(ROOT / "deploy" / "systemd" / "fermata-worker@.service")
    assert int(worker["TimeoutStopSec"]) > load({}).drain_seconds + 15
    assert "mixed" == worker["KillMode"]


def test_the_page_for_programs_says_what_the_code_does() -> None:
    """Each right of each role, each reason and each event, and no other."""
    page = (ROOT / "docs" / "API.md").read_text()
    tables = [re.findall(r"^\| (.*) \|$", part, re.MULTILINE) for part in page.split("\n## ")]
    rights, reasons, events = (rows[1:] for rows in tables if rows)
    roles = re.findall("`([a-z]+)`", page.split("| may |")[1].splitlines()[0])
    ticked = [{role for role, tick in zip(roles, row.split("|")[1:], strict=True) if tick.strip()} for row in rights]
    assert [set(map(str, PERMISSIONS[may])) for may in May] == ticked
    assert [f"`{ending}` | `{rule.state}` | {rule.sentence}" for ending, rule in RULES.items()] == reasons
    assert [f"`{name}` | {said}" for name, said in EVENTS.items()] == events
