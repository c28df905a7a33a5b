"""Alembic's entry: runs on the connection that `worker.store.migrate` opened and locked."""

from alembic import context

from worker.store.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
