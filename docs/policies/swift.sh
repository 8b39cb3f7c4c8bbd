# Swift knows reading and writing only: who may write may replace and delete. CONTAINER_segments is for large objects.
for container in CONTAINER CONTAINER_segments; do
  swift post "$container" \
    --read-acl 'PROJECT:WRITER,PROJECT:READER,PROJECT:EXPIRER,.rlistings' \
    --write-acl 'PROJECT:WRITER,PROJECT:EXPIRER'
done
