"""Files that the decoder's tests read."""

import json

import pytest

from tests.actors.messages import AVRO


@pytest.fixture(scope="session")
def schema_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("avro") / "flight.avsc"
    path.write_text(json.dumps(AVRO))
    return str(path)
