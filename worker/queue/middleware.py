"""What we hook into dramatiq. It observes. A hook never moves money: dramatiq swallows what it raises."""

from __future__ import annotations

import structlog
from dramatiq import Broker, Middleware
from dramatiq.broker import MessageProxy


class LogBinding(Middleware):
    """Every line logged on behalf of a hint, its jobs included, names the hint and the queue."""

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        structlog.contextvars.bind_contextvars(hint=message.message_id, queue=message.queue_name)

    def after_process_message(
        self,
        broker: Broker,
        message: MessageProxy,
        *,
        result: object = None,
        exception: BaseException | None = None,
    ) -> None:
        structlog.contextvars.unbind_contextvars("hint", "queue")
