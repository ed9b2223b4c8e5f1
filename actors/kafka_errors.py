"""kafka-python's errors -> ours: what was refused, and which setting to look at. Never a secret."""

import kafka.errors

from actors.kafka_config import TLS_KEYS, SourceConfig
from actors.tls import meaning
from schemas.errors import SourceDown, SourceError

RIGHTS = kafka.errors.AuthorizationError
LOGIN = (
    kafka.errors.SaslAuthenticationFailedError,
    kafka.errors.UnsupportedSaslMechanismError,
    kafka.errors.IllegalSaslStateError,
)
REFUSALS = (RIGHTS, *LOGIN, kafka.errors.KafkaConfigurationError)


def translated(error: Exception, config: SourceConfig, what: str = "") -> SourceDown | SourceError:
    """SourceError where Kafka refuses us, else SourceDown. `what`: what we asked for, "to read t"."""
    where = f"Kafka at {', '.join(config.hosts)}"
    who = f"the user {config.username!r}" if config.username else "us"
    if isinstance(error, RIGHTS):
        asked = what or str(error)
        return SourceError(
            f"{where} refuses {who} the right {asked} ({type(error).__name__}). Grant it; "
            "docs/security.md has the lines."
        )
    if isinstance(error, kafka.errors.SaslAuthenticationFailedError):
        return SourceError(
            f"{where} refuses the name or the password of {who}: see source.username, "
            f"{config.password_key} and source.sasl_mechanism ({config.sasl_mechanism})."
        )
    if isinstance(error, REFUSALS):
        return SourceError(
            f"{where} refuses us ({_short(error)}). See source.security_protocol and source.sasl_mechanism."
        )
    if handshake := meaning(error, TLS_KEYS):
        return SourceDown(f"{where}: {handshake} ({_short(error)}).")
    what_else = f"{_short(error)}" or type(error).__name__
    return SourceDown(
        f"{where} does not answer within {config.timeout_s:g} s ({what_else}). Is it running, "
        f"and is source.security_protocol {config.security_protocol} the listener's?"
    )


def _short(error: Exception) -> str:
    return str(error).partition("\n")[0][:300]
