"""S3 as a store: all requests go over this room's own HTTP connections.

What comes in is keys, sources and memory to fill; what goes out is signed requests, and objects or
bytes. s3fs finds the credentials, the endpoint and the region; botocore signs. This room never
follows a redirect with credentials, never reads more of an answer than was asked for, and never
loses track of an unfinished upload.

Start with `s3_store`. Uploads: `object_upload`, `multipart_uploads`, `part_senders`. Requests:
`operations`, `botocore_client_and_credentials`, `http_connection`. `signed_reads` lists and reads
without s3fs.
"""
