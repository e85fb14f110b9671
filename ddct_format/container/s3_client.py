"""S3 and stores that speak its language, through boto3 (``pip install 'ddct[s3]'``)."""

from __future__ import annotations

from typing import Any

from ddct_format.errors import HubError

__all__ = ["NO_CREDENTIALS", "s3_client", "signed_s3_url"]

NO_CREDENTIALS = "there are no credentials: aws configure, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"

_SIGNED_FOR_SECONDS = 7 * 24 * 3600
"""As long as the signature's rules allow; temporary credentials may end it earlier."""


def s3_client(endpoint: str | None, location: str) -> Any:
    """A client with credentials and region from where AWS tools look.

    Args:
        endpoint: URL of a store that is not Amazon's; by default AWS_ENDPOINT_URL_S3 or Amazon.
        location: for messages.

    Raises:
        HubError: boto3 is not installed, or its configuration cannot be used.
    """
    try:
        import boto3
        from botocore.config import Config
    except ImportError as error:
        raise HubError("s3:// needs boto3: pip install 'ddct[s3]'", place=location) from error
    # Checksums beyond what a request requires are refused by many stores that are not Amazon's.
    config = Config(
        retries={"max_attempts": 3, "mode": "standard"},
        connect_timeout=20,
        read_timeout=60,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        signature_version="s3v4",
    )
    try:
        return boto3.client("s3", endpoint_url=endpoint, config=config)
    except Exception as error:  # botocore has no common base, and no region is a common mistake
        raise HubError(str(error), place=location) from error


def signed_s3_url(bucket: str, key: str, location: str) -> str:
    """An address from which plain HTTP reads the object; it holds a signature, and must not be shown."""
    client = s3_client(None, location)
    try:
        url: str = client.generate_presigned_url(
            "get_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=_SIGNED_FOR_SECONDS
        )
    except Exception as error:
        reason = NO_CREDENTIALS if type(error).__name__ == "NoCredentialsError" else str(error)
        raise HubError(reason, place=location) from error
    return url
