"""S3's data path: bytes go by our own connections, all else by s3fs. botocore signs both."""
