"""Clients of kafka-python, closed for good where they fail."""

from typing import Any

import kafka.errors
from kafka.net.compat import KafkaNetClient
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector

from actors.kafka_errors import LOGIN


class _Manager(KafkaConnectionManager):  # type: ignore[misc]
    """Remembers why a connection failed: kafka-python 3.0.12 tries again until time is up, and then says
    only that. A refused login is not tried again: that could lock the account."""

    trouble: Exception | None = None

    def get_connection(self, *args: Any, **options: Any) -> Any:
        why = self.trouble
        if isinstance(why, LOGIN) and not self.bootstrapped:
            raise why
        made = super().get_connection(*args, **options)
        if not made.init_future.is_done:
            made.init_future.add_errback(self._failed)
        return made

    async def _build_transport(self, *args: Any, **options: Any) -> Any:
        """Why a login is refused comes together with the connection's end, and would be dropped."""
        made = await super()._build_transport(*args, **options)
        receive = made._sock_recv

        def data_first() -> tuple[bytes, Exception | None]:
            data, error = receive()
            return data, None if data else error

        made._sock_recv = data_first
        return made

    def _failed(self, error: Exception) -> None:
        self.trouble = error.with_traceback(None)  # whose frames would keep the socket open


def connected(kind: Any, **options: Any) -> Any:
    """A consumer, producer or admin client. Where it cannot connect, it says why and leaves nothing behind.

    Its constructor starts a thread, and raises without ending it."""
    made: list[Any] = []

    def network(**settings: Any) -> Any:
        net = NetworkSelector(**settings)
        made.append(KafkaNetClient(net, _Manager(net, **settings)))
        return made[-1]

    try:
        return kind(**options, kafka_client=network)
    except BaseException as error:
        for client in made:
            client.close()
        why = made[-1]._manager.trouble if made else None
        if why is None or not isinstance(error, kafka.errors.KafkaError):
            raise
        if isinstance(why, kafka.errors.KafkaError):
            raise why from None
        raise kafka.errors.KafkaConnectionError(str(why) or type(why).__name__) from None


def abandon(producer: Any) -> None:
    """Ends a producer with whatever it had not delivered; its `close` would wait for that."""
    producer._sender.force_close()
    producer._sender.join(5.0)
    try:
        producer.close(timeout=0)
    except (kafka.errors.KafkaError, OSError):
        return
