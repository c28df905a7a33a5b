"""Where audio lies: a folder that all machines share, or a bucket of an S3-compatible server."""
