"""The identity of a peer: one RSA key gives its libp2p id and signs its records, and survives restarts."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ttt.errors import InvalidInput

if TYPE_CHECKING:
    from hivemind.utils.crypto import RSAPrivateKey

IDENTITY_FILE = "identity.key"


def load_identity(folder: Path) -> tuple[Path, RSAPrivateKey]:
    """Return the key file of a folder, which is created at the first call, and its key.

    Raises InvalidInput if the file is damaged.
    """
    from cryptography.hazmat.primitives import serialization
    from hivemind.p2p import P2P
    from hivemind.proto import crypto_pb2
    from hivemind.utils.crypto import RSAPrivateKey

    path = folder / IDENTITY_FILE
    if not path.exists():
        # libp2p's format, as the daemon reads the same file.
        temporary = folder / f".{IDENTITY_FILE}-{os.getpid()}"
        P2P.generate_identity(str(temporary))
        temporary.rename(path)
    try:
        data = crypto_pb2.PrivateKey.FromString(path.read_bytes()).data
        # hivemind's class can only make new keys, or read those that it saved itself.
        key = RSAPrivateKey.__new__(RSAPrivateKey)
        key._private_key = serialization.load_der_private_key(data, password=None)
    except Exception as error:
        raise InvalidInput(f"{path} is not a key file ({error}); delete it to get a new key and peer id") from None
    return path, key


def peer_id_of(public_key: bytes) -> str:
    """Return the libp2p id (base58) of an RSA key in OpenSSH's format, in which DHT records name their owners.

    A libp2p id is the SHA-256 multihash of the key in libp2p's protobuf format
    (https://github.com/libp2p/specs/blob/master/peer-ids/peer-ids.md).
    """
    import base58
    import multihash  # type: ignore[import-untyped]
    from cryptography.hazmat.primitives import serialization
    from hivemind.proto import crypto_pb2

    key = serialization.load_ssh_public_key(public_key)
    encoded = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    message = crypto_pb2.PublicKey(key_type=crypto_pb2.RSA, data=encoded).SerializeToString()
    digest = multihash.encode(hashlib.sha256(message).digest(), multihash.coerce_code("sha2-256"))
    return base58.b58encode(bytes(digest)).decode()
