"""TLS for Kafka and Redis alike: files that can be used, and what a failed handshake means."""

import ssl
from pathlib import Path
from typing import NamedTuple

from schemas.errors import SettingsError


class Keys(NamedTuple):
    """The settings that a refusal names."""

    ca: str
    certificate: str
    key: str
    where: str  # the server's name
    protocol: str  # whether TLS is spoken


_MEANINGS = (
    (
        ("mismatch, certificate is not valid",),
        "the server's certificate is for another name than {where} has: name the server as it does",
    ),
    (("certificate has expired", "is not yet valid"), "the server's certificate is out of date"),
    (
        ("CERTIFICATE_VERIFY_FAILED", "certificate verify failed"),
        "the server's certificate is not of an authority that we trust: see {ca}",
    ),
    (
        (
            "ALERT_CERTIFICATE_REQUIRED", "ALERT_CERTIFICATE_UNKNOWN", "ALERT_UNKNOWN_CA",
            "ALERT_BAD_CERTIFICATE", "HANDSHAKE_FAILURE",
        ),
        "the server wants a certificate of ours that it trusts: see {certificate} and {key}",
    ),
    (
        ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNEXPECTED_EOF", "EOF occurred", "Handshake failed"),
        "the server does not speak TLS there, see {protocol}, or wants a certificate of ours, see {certificate}",
    ),
)  # fmt: skip


def meaning(error: Exception, keys: Keys) -> str:
    """What a failed handshake means and where to mend it; empty where the error is none."""
    text = str(error)
    for signs, told in _MEANINGS:
        if any(sign.lower() in text.lower().replace(" alert ", " alert_") for sign in signs):
            return told.format(**keys._asdict())
    return ""


def check_files(keys: Keys, ca: str, certificate: str, key: str) -> None:
    """Raises SettingsError where one of the files, each of which may be "", cannot be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for name, file in ((keys.ca, ca), (keys.certificate, certificate), (keys.key, key)):
        try:
            if file:
                Path(file).open("rb").close()
        except OSError as error:
            raise SettingsError(f"{name} {file} cannot be read: {error.strerror}.") from None
    try:
        if ca:
            context.load_verify_locations(ca)
    except ssl.SSLError:
        raise SettingsError(f"{keys.ca} {ca} holds no certificate in PEM.") from None
    try:
        if certificate:  # a password, so that nobody is asked for one at a terminal
            context.load_cert_chain(certificate, key, lambda: b"none")
    except ssl.SSLError:
        raise SettingsError(
            f"{keys.certificate} {certificate} and {keys.key} {key} are no certificate and its key, both in "
            "PEM and the key without a password."
        ) from None
