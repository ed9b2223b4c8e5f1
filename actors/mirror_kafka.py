"""The mirror on Kafka."""

from actors.kafka_config import SourceConfig
from actors.mirror import MESSAGE_BYTES
from actors.outbox import Letter, Outbox
from actors.ports import Mirror


class KafkaMirror(Outbox, Mirror):
    """Connects when the first message comes. config: with the mirror as its last topic."""

    what = "mirrored edges"

    def __init__(self, config: SourceConfig, stream_name: str) -> None:
        super().__init__(config, f"kafka-mirror-{stream_name}", 4 * MESSAGE_BYTES)
        self._topic = config.topics[-1]

    def send(self, group: int, message: bytes) -> None:
        self.put(Letter(self._topic, None, message, [], group), wait=False)
