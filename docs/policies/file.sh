# write and expire: the account of PostgreSQL, which owns the archive. read: members of a group. Others see nothing.
install -d -o postgres -g holdfast-read -m 2750 /srv/archive
usermod -a -G holdfast-read READER
