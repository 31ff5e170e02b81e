"""The stored inputs of a tenant's tasks, as runners read them."""

from shared.artifacts.store import BlockingArtifacts


class TenantFiles:
    """The artifacts of one tenant. Another tenant's are not found."""

    def __init__(self, artifacts: BlockingArtifacts, tenant: str) -> None:
        self._artifacts = artifacts
        self._tenant = tenant

    def read(self, artifact_id: str, *, max_bytes: int) -> bytes:
        """Return all bytes of an artifact. Raise as `ArtifactStore.read_all` does."""
        return self._artifacts.read(self._tenant, artifact_id, max_bytes=max_bytes)
