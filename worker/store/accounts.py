"""Accounts, and all that billing and the product do with them."""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from worker.credits.plans import PlanBook
from worker.store.books import Books
from worker.store.database import reading, transaction
from worker.store.purchases import Purchases
from worker.store.references import check_account_id, check_actor
from worker.store.subscriptions import Subscriptions

__all__ = ["Accounts"]


class Accounts(Subscriptions, Purchases):
    """One door for the CLI, the API and the demo."""

    def __init__(self, engine: AsyncEngine, books: Books) -> None:
        Subscriptions.__init__(self, books)
        Purchases.__init__(self, books)
        self._engine = engine

    async def create(self, account_id: str, actor: str) -> bool:
        """Make the account; False if it is there already. Raises `Refused` for an id out of bounds."""
        check_account_id(account_id)
        check_actor(actor)
        async with transaction(self._engine, "create_account") as connection:
            made = await connection.scalar(_CREATE, {"account": account_id, "actor": actor})
        return made is not None

    async def plans(self) -> PlanBook:
        """The plans in force now."""
        async with reading(self._engine) as connection:
            return await self._books.plan_books.current(connection)


_CREATE = text("""
    INSERT INTO accounts (account_id, created_at, actor)
    VALUES (:account, fermata_now(), :actor)
    ON CONFLICT DO NOTHING
    RETURNING account_id
""")
