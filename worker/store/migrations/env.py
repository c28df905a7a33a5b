"""Alembic's entry: runs on the connection that `worker.store.migrate` opened and locked."""

from alembic import context

from worker.store.tables import metadata

# Each in a transaction of its own: no lock is held from one to the next, and an index can be made beside writers.
context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, transaction_per_migration=True
)
with context.begin_transaction():
    context.run_migrations()
