"""The coordinator's settings: environment variables `FLEXLORA_…`, or files of those names in lower case in a secrets folder."""

import os
from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import URL, make_url


class Settings(BaseSettings):
    """Every setting of the coordinator; `docs/operating.md` holds the same table and a test compares the two."""

    model_config = SettingsConfigDict(env_prefix="FLEXLORA_", extra="ignore", frozen=True)

    data_dir: Path = Field(
        Path("flexlora-data"), description="folder of the SQLite file, the blobs and the operator key"
    )
    blobs_url: str | None = Field(
        None, description="where blobs are kept: `s3://bucket/prefix`; unset: in the data folder"
    )
    s3_endpoint: str | None = Field(None, description="address of the S3-compatible store; unset: AWS in the region")
    s3_region: str = Field("us-east-1", description="region of the bucket")
    s3_access_key_id: str | None = Field(None, description="key to the bucket; unset: what the machine itself is given")
    s3_secret_access_key: SecretStr | None = Field(None, description="its secret; best given as a secret file")
    s3_public_endpoint: str | None = Field(
        None,
        description="the store's address for participants, who are sent there for slices; unset: slices pass through here",
    )
    cache_bytes: int = Field(
        10 << 30, ge=0, description="bytes of local copies of blobs kept in the data folder, beside those in use"
    )
    database_url: str | None = Field(None, description="SQLAlchemy URL; unset: SQLite in the data folder")
    database_password: SecretStr | None = Field(
        None, description="put into the database URL; best given as a secret file"
    )
    operator_key: SecretStr | None = Field(None, description="the operator's API key; unset: generated at first start")
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one and prints it")
    workers: int = Field(
        1, ge=0, le=64, description="aggregation processes that `serve` starts; 0: run `worker` yourself"
    )
    aggregation_threads: int = Field(2, ge=1, le=256, description="modules factored at once, one LAPACK thread each")
    aggregation_device: str = Field(
        "cpu",
        pattern=r"^(cpu|cuda(:\d+)?)$",
        description="where modules are factored: cpu, or cuda with PyTorch's CUDA build",
    )
    ray_address: str | None = Field(
        None, description="Ray cluster to spread modules over: auto, HOST:PORT or ray://HOST:PORT; unset: threads here"
    )
    presence_window: float = Field(
        15.0, gt=0, description="seconds since its last sign of life that a participant counts"
    )
    min_upload_rate: int = Field(
        1024, ge=0, description="bytes a second below which an upload is cut off; 0: only after 30 s of silence"
    )
    max_json_body: int = Field(4 << 20, ge=1024, description="largest JSON body in bytes")
    lease_seconds: float = Field(
        60.0, gt=1, description="seconds after which an aggregation without renewal is taken over"
    )

    @property
    def url(self) -> URL:
        """The database's URL, with the password put in."""
        # not from text: a folder's name may contain ? or %
        sqlite = URL.create("sqlite", database=str(self.data_dir / "flexlora.db"))
        url = make_url(self.database_url) if self.database_url else sqlite
        if url.drivername in {"postgres", "postgresql"}:
            url = url.set(drivername="postgresql+psycopg")
        return url if self.database_password is None else url.set(password=self.database_password.get_secret_value())


def load_settings() -> Settings:
    """Settings from the environment; files in `$FLEXLORA_SECRETS_DIR` (Docker secrets) where that is set."""
    return Settings(_secrets_dir=os.environ.get("FLEXLORA_SECRETS_DIR"))
