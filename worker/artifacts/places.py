"""From FERMATA_ARTIFACTS_URL to a store: a folder, or s3://bucket/prefix?endpoint=https://…&region=…"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from config.settings import Settings
from worker.artifacts.bucket import BucketStore
from worker.artifacts.folder import FolderStore
from worker.artifacts.s3 import BucketPlace
from worker.artifacts.store import ArtifactError, ArtifactStore

_URL = "FERMATA_ARTIFACTS_URL"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PREFIX = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*")


def store_at(settings: Settings) -> ArtifactStore:
    """The store that the settings name. Raises `ArtifactError` for a URL that names none; shows nothing of it."""
    assert settings.artifacts_url is not None
    try:
        parts = urlsplit(settings.artifacts_url)
    except ValueError:
        raise ArtifactError(f"{_URL}: can't be read as a URL") from None
    if parts.scheme == "s3":
        place = _place_of(parts, settings)
        return BucketStore(place, _work_for(place, settings))
    if parts.scheme not in {"", "file"} or (parts.scheme == "file" and parts.netloc not in {"", "localhost"}):
        raise ArtifactError(
            f"{_URL}: must be a folder, as file:///folder or /folder, or a bucket, as s3://bucket/prefix"
        )
    return FolderStore(Path(unquote(parts.path)).absolute())


def _place_of(parts: SplitResult, settings: Settings) -> BucketPlace:
    if "@" in parts.netloc:
        raise ArtifactError(
            f"{_URL}: must hold no key: give FERMATA_ARTIFACTS_KEY_ID and FERMATA_ARTIFACTS_SECRET instead"
        )
    prefix = parts.path.strip("/")
    if not _BUCKET.fullmatch(parts.netloc) or (prefix and not _PREFIX.fullmatch(prefix)) or ".." in prefix:
        raise ArtifactError(f"{_URL}: must be s3://bucket/prefix, with letters, digits, . - _ in its names")
    asked = dict(parse_qsl(parts.query, keep_blank_values=True))
    if unknown := sorted(asked.keys() - {"endpoint", "region"}):
        raise ArtifactError(f"{_URL}: no such option {unknown[0][:32]!r}; there are endpoint and region")
    key_id, secret = settings.artifacts_key_id, settings.artifacts_secret
    return BucketPlace(
        bucket=parts.netloc,
        prefix=prefix,
        endpoint=_endpoint_of(asked["endpoint"]) if "endpoint" in asked else None,
        region=asked.get("region") or None,
        key_id=key_id.get_secret_value() if key_id else None,
        secret=secret.get_secret_value() if secret else None,
    )


def _endpoint_of(url: str) -> str:
    try:
        parts = urlsplit(url)
        good = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good or "@" in url or parts.query or parts.fragment or parts.path not in {"", "/"}:
        raise ArtifactError(f"{_URL}: its endpoint must be https://host:port")
    return url.rstrip("/")


def _work_for(place: BucketPlace, settings: Settings) -> Path:
    """A folder of this machine, apart from those of other stores: each sweeps what its own books don't know."""
    parent = settings.scratch_dir or Path(tempfile.gettempdir()) / f"fermata-{os.geteuid()}"
    return parent.absolute() / hashlib.sha256(place.described.encode()).hexdigest()[:16] / "work"
