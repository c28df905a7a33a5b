"""Each pair of what can happen to one account, in both orders, and some threes: who waits, and what each answers.

Each session begins when the one before it has written and not committed, so there is nothing left to chance: no sleeps,
no odds. See `interleaving` for the scene. Afterwards the auditor finds nothing and the books are exact.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Sequence

import pytest

from tests.acceptance.exactness import assert_books_exact
from tests.integration.books import Store, opened
from tests.integration.interleaving import SESSIONS, Played, played
from tests.servers import Database, Servers, fresh_database

#: Who begins in which order; of those after the first, who had to wait (w) for the one before and who did not (-); the
#: answers; what has become of R and Q. Claims wait where there is not enough yet, and are queued by who brings it.
OUTCOMES = """
claim claim            w   waits | waiting                                         running, waiting
claim settle           w   waits | succeeded for 4                                 succeeded for 4, queued
claim reap             w   waits | failed for 0                                    failed for 0, queued
claim cancel           w   waits | cancelled for 0                                 running, cancelled for 0
claim expire           w   waits | 7                                               running, waiting
claim topup            w   waits | credited                                        running, queued
claim price            -   waits | in force                                        running, waiting
claim renew            -   waits | renewed                                         running, waiting
settle claim           w   succeeded for 4 | claimed                               succeeded for 4, running
settle settle          w   succeeded for 4 | fenced                                succeeded for 4, queued
settle reap            w   succeeded for 4 | fenced                                succeeded for 4, queued
settle cancel          w   succeeded for 4 | already succeeded                     succeeded for 4, queued
settle expire          w   succeeded for 4 | 7                                     succeeded for 4, queued
settle topup           w   succeeded for 4 | credited                              succeeded for 4, queued
settle price           -   succeeded for 4 | in force                              succeeded for 4, queued
settle renew           -   succeeded for 4 | renewed                               succeeded for 4, queued
reap claim             w   failed for 0 | claimed                                  failed for 0, running
reap settle            w   failed for 0 | fenced                                   failed for 0, queued
reap reap              w   failed for 0 | fenced                                   failed for 0, queued
reap cancel            w   failed for 0 | already failed                           failed for 0, queued
reap expire            w   failed for 0 | 7                                        failed for 0, queued
reap topup             w   failed for 0 | credited                                 failed for 0, queued
reap price             -   failed for 0 | in force                                 failed for 0, queued
reap renew             -   failed for 0 | renewed                                  failed for 0, queued
cancel claim           w   cancelled for 0 | ended                                 running, cancelled for 0
cancel settle          w   asked | succeeded for 4                                 succeeded for 4, queued
cancel reap            w   asked | cancelled for 0                                 cancelled for 0, queued
cancel cancel          w   asked | asked                                           running, queued
cancel expire          w   asked | 7                                               running, queued
cancel topup           w   asked | credited                                        running, queued
cancel price           -   asked | in force                                        running, queued
cancel renew           -   asked | renewed                                         running, queued
expire claim           w   7 | waits                                               running, waiting
expire settle          w   7 | succeeded for 4                                     succeeded for 4, queued
expire reap            w   7 | failed for 0                                        failed for 0, queued
expire cancel          w   7 | asked                                               running, queued
expire expire          w   7 | 0                                                   running, queued
expire topup           w   7 | credited                                            running, queued
expire price           -   7 | in force                                            running, queued
expire renew           -   7 | renewed                                             running, queued
topup claim            w   credited | claimed                                      running, running
topup settle           w   credited | succeeded for 4                              succeeded for 4, queued
topup reap             w   credited | failed for 0                                 failed for 0, queued
topup cancel           w   credited | asked                                        running, queued
topup expire           w   credited | 7                                            running, queued
topup topup            w   credited | replayed                                     running, queued
topup price            -   credited | in force                                     running, queued
topup renew            -   credited | renewed                                      running, queued
price claim            -   in force | waits                                        running, waiting
price settle           -   in force | succeeded for 4                              succeeded for 4, queued
price reap             -   in force | failed for 0                                 failed for 0, queued
price cancel           -   in force | asked                                        running, queued
price expire           -   in force | 7                                            running, queued
price topup            -   in force | credited                                     running, queued
price price            w   in force | in force                                     running, queued
price renew            -   in force | renewed                                      running, queued
renew claim            -   renewed | waits                                         running, waiting
renew settle           w   renewed | succeeded for 4                               succeeded for 4, queued
renew reap             w   renewed | fenced                                        running, queued
renew cancel           w   renewed | asked                                         running, queued
renew expire           -   renewed | 7                                             running, queued
renew topup            -   renewed | credited                                      running, queued
renew price            -   renewed | in force                                      running, queued
renew renew            -   renewed | renewed                                       running, queued
settle reap cancel     ww  succeeded for 4 | fenced | already succeeded            succeeded for 4, queued
settle cancel reap     ww  succeeded for 4 | already succeeded | fenced            succeeded for 4, queued
reap settle cancel     ww  failed for 0 | fenced | already failed                  failed for 0, queued
reap cancel settle     ww  failed for 0 | already failed | fenced                  failed for 0, queued
cancel settle reap     ww  asked | succeeded for 4 | fenced                        succeeded for 4, queued
cancel reap settle     ww  asked | cancelled for 0 | fenced                        cancelled for 0, queued
claim settle topup     ww  waits | succeeded for 4 | credited                      succeeded for 4, queued
claim topup settle     ww  waits | credited | succeeded for 4                      succeeded for 4, queued
settle claim topup     ww  succeeded for 4 | claimed | credited                    succeeded for 4, running
settle topup claim     ww  succeeded for 4 | credited | claimed                    succeeded for 4, running
topup claim settle     ww  credited | claimed | succeeded for 4                    succeeded for 4, running
topup settle claim     ww  credited | succeeded for 4 | claimed                    succeeded for 4, running
renew reap settle      ww  renewed | fenced | succeeded for 4                      succeeded for 4, queued
renew settle reap      ww  renewed | succeeded for 4 | fenced                      succeeded for 4, queued
reap renew settle      --  failed for 0 | renewed | fenced                         failed for 0, queued
reap settle renew      w-  failed for 0 | fenced | lost                            failed for 0, queued
settle renew reap      --  succeeded for 4 | renewed | fenced                      succeeded for 4, queued
settle reap renew      w-  succeeded for 4 | fenced | lost                         succeeded for 4, queued
claim cancel topup     ww  waits | cancelled for 0 | credited                      running, cancelled for 0
claim topup cancel     ww  waits | credited | cancelled for 0                      running, cancelled for 0
cancel claim topup     ww  cancelled for 0 | ended | credited                      running, cancelled for 0
cancel topup claim     ww  cancelled for 0 | credited | ended                      running, cancelled for 0
topup claim cancel     ww  credited | claimed | asked                              running, running
topup cancel claim     ww  credited | cancelled for 0 | ended                      running, cancelled for 0
"""

#: Nothing here takes its time, but machines may be busy: nobody gives up while somebody is held.
PATIENCE = {
    "lease_seconds": 200,
    "renew_seconds": 20,
    "idle_transaction_seconds": 100,
    "lock_timeout_seconds": 50,
    "statement_timeout_seconds": 120,
}


def stated(line: str) -> tuple[tuple[str, ...], Played]:
    """One line of the table."""
    words = line.split()
    names = tuple(itertools.takewhile(SESSIONS.__contains__, words))
    waited, rest = words[len(names)], line.partition(f" {words[len(names)]} ")[2]
    *answers, last = (part.strip() for part in rest.split("|"))
    answer, _, jobs = last.partition("  ")
    return names, Played((*answers, answer), tuple(letter == "w" for letter in waited), jobs.strip())


TABLE = dict(stated(line) for line in OUTCOMES.strip().splitlines())


@pytest.fixture(scope="module")
def sessions(servers: Servers) -> Iterator[tuple[asyncio.Runner, Database, Sequence[Store]]]:
    """Three processes' stores on one database; each case has an account of its own."""
    with asyncio.Runner() as runner:
        database = fresh_database(servers)
        entered = runner.run(database.__aenter__())
        stores = [opened(entered, **PATIENCE) for _ in range(3)]
        yield runner, entered, [runner.run(store.__aenter__()) for store in stores]
        for store in stores:
            runner.run(store.__aexit__(None, None, None))
        runner.run(database.__aexit__(None, None, None))


def test_every_pair_is_in_the_table_in_both_orders() -> None:
    """Whoever adds a session says how it gets on with all others."""
    assert set(itertools.product(SESSIONS, repeat=2)) <= set(TABLE)


@pytest.mark.parametrize("first", SESSIONS)
def test_whoever_comes_next_meets_what_was_written(
    sessions: tuple[asyncio.Runner, Database, Sequence[Store]], first: str
) -> None:
    """Given one that has written and not committed, the others wait for it or need not, and answer as stated."""
    runner, database, stores = sessions
    cases = [names for names in TABLE if names[0] == first]
    seen = {names: runner.run(played(stores, names)) for names in cases}
    assert {names: TABLE[names] for names in cases} == seen
    runner.run(assert_books_exact(database))
